// The border between the torch side (csrc/ops) and the CPU kernels: plain data and two functions, no torch header
// below it. csrc/ops fills one of these structs; a kernel reads it and never sees a tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "../cells/activation.h"
#include "../types.h"
#include "team.h"

namespace customlstm {

// How a gate matrix is read: packed into panels, all of them first or each just before it is used, or where it
// lies. There squares of it are turned in registers, with the very sums of the packed panel; or products are summed
// along its rows, in another order.
enum class WeightAccess : int32_t { kPacked, kTurned, kAlongRows, kPackedInTurn };

// Rows of one step that are projected, or whose input gradient is computed, at a time, at most.
constexpr int64_t kBlockRows = 96;

// How the work is divided (plan.cpp decides). Sequences are dealt into `groups`; with `share_units` there is one group
// and the whole team works on each step, every thread on its own hidden units.
struct Plan {
  int32_t threads;
  int32_t groups;
  bool share_units;
  WeightAccess w_ih, w_hh;                     // of forward
  WeightAccess backward_w_ih, backward_w_hh;   // kTurned: where they lie, which takes no turning there
};

// Keeps a share of the old state: all of it where the mask is 1 and nothing where it is 0, or without a mask `rate`.
struct Zoneout {
  const uint8_t* mask;   // [rows, D * size of the state] or null
  double rate;
};

// The sizes of one layer and where its rows lie. A row is one sequence at one step; its number is
// step_row[t] + column, for padded data t * batch + column, for packed data the position in PackedSequence.data.
struct Geometry {
  int64_t steps;        // T
  int64_t batch;        // B
  int64_t input_size;   // L
  int64_t hidden_size;  // H
  int64_t output_size;  // P: size of the hidden state h_t, H without projection
  int64_t gates;        // G: pre-activations of the cell; rows of W_ih and W_hh are G * H
  int64_t directions;   // D
  int64_t unit_parameters;   // of the cell that this call has
  bool bias;
  bool projection;
  bool norms[kNormPlaces];   // which layer norms there are; of kNormalised cells only

  const int64_t* step_row;        // [T]
  const int64_t* step_input;      // [T] offset in elements of the step's first column in `input`
  int64_t input_column_stride;    // elements
  int64_t input_feature_stride;   // elements
  const int64_t* lengths;         // [B] steps of each column, 0..T
  const int64_t* columns;         // [B] columns, dealt to groups; within a group longest first
  const int64_t* group_begin;     // [groups + 1] into columns
  const uint8_t* resets;          // [T, B] or null
  const uint8_t* recurrent_mask;  // [D, B, P] or null: W_hh is multiplied by recurrent_scale h where 1, by 0 where 0
  double recurrent_scale;
  Zoneout zoneout_h, zoneout_c;
  int64_t valid_rows;             // rows within their sequence's length
};

struct DirectionWeights {
  const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;   // storage type, contiguous; biases and w_hr may be null
  const void* unit_parameters[kMaxUnitParameters];   // [H] each, as many as Geometry says
  struct {
    const void *gain, *bias;   // [gates * H], of the cell state [H]; null where there is no norm
  } norms[kNormPlaces];
};

// Pointers are the caller's; nothing is kept after the call. S is the accumulation type (double for float64, else
// float). All arrays are contiguous except `input`.
struct ForwardParams {
  Geometry g;
  Plan plan;
  DirectionWeights weights[2];
  const void* packed;         // the weights as KernelTable::pack left them, 64-byte aligned, or null: packed anew
  const void* cell_params;    // CellParams<S>
  const void* input;          // T
  const void* h_0;            // [D, B, P] or null: zeros
  const void* c_0;            // [D, B, states of the cell, H] or null
  void* output;               // [rows, D * P]; rows beyond a length are not written
  void* h_n;                  // [D, B, P]
  void* c_n;                  // [D, B, states of the cell, H]
  void* c_all;                // S [rows, D, states of the cell, H] or null
  void* gates;                // S [rows, D, kSaved and with zoneout of c the cell's own states, H] or null; with layer
                              // norm of products see kept_values() in layer_norm.inl
  void* hidden;               // S [rows, D * H] or null: h before the projection
  void* workspace;            // forward_workspace bytes, 64-byte aligned
};

struct BackwardParams {
  Geometry g;
  Plan plan;
  DirectionWeights weights[2];
  const void* cell_params;
  const void* input;
  const void* h_0;
  const void* c_0;
  const void* output;         // as forward left them
  const void* c_all;
  const void* gates;
  const void* hidden;
  const void* grad_output;    // T [rows, D * P] or null: zeros
  const void* grad_h_n;       // T [D, B, P] or null
  const void* grad_c_n;       // T [D, B, states of the cell, H] or null
  const void* grad_c_all;     // S [rows, D, states of the cell, H] or null
  void* grad_input;           // T [rows, L] or null: not wanted
  void* grad_h_0;             // T or null
  void* grad_c_0;
  struct {
    // S, or null: not wanted. bias serves b_ih and b_hh, and the biases of the layer norms of both products, all of
    // which are added to the gates alike; of these the entries below are not used.
    void *w_ih, *w_hh, *bias, *w_hr;
    void* unit_parameters[kMaxUnitParameters];
    struct {
      void *gain, *bias;
    } norms[kNormPlaces];
  } grad_weights[2];
  void* workspace;
};

// The kernels of one cell for one storage type.
struct ForwardKernels {
  // Weights that are kept from call to call: their size, and what fills them in. From these parameters are read the
  // sizes but for steps, the plan's access to the weights, and the weights.
  size_t (*packed_bytes)(const ForwardParams&);
  void (*pack)(const ForwardParams&, void* packed);
  size_t (*workspace)(const ForwardParams&);
  void (*run)(const ForwardParams&, Team&, int rank);
};
struct BackwardKernels {
  size_t (*workspace)(const BackwardParams&);
  void (*run)(const BackwardParams&, Team&, int rank);
};
struct CellKernels {
  ForwardKernels forward;
  BackwardKernels backward;
};

// kGates, kStates, kSaved and kParameters of a cell.
struct CellSizes {
  int64_t gates, states, saved, unit_parameters;
};

// Flags of a random mask that are drawn at a time.
constexpr int64_t kMaskGroup = 128;

struct KernelTable {
  const char* name;
  // Flags begin .. end - 1 of a mask, begin a multiple of kMaskGroup: 1 where the flag's random word is at most `most`.
  void (*draw_flags)(uint64_t seed, uint32_t most, uint8_t* flags, int64_t begin, int64_t end);
  CellKernels cells[kStorageTypes][kCellKinds];
};

const KernelTable* kernels_default();
const KernelTable* kernels_avx2();     // null where the compiler could not build them
const KernelTable* kernels_avx512();
const KernelTable* kernels_avx512_bf16();   // has the entries of bfloat16 only

// The table for this CPU, chosen once; the environment variable CUSTOMLSTM_CPU_ISA (default, avx2, avx512,
// avx512_bf16) forces a lower one. Throws std::runtime_error for a name that is unknown or that the CPU cannot run.
const KernelTable& kernels();

}  // namespace customlstm
