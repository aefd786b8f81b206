// The border between the torch side (csrc/ops) and the CUDA kernels: plain data, no torch header below it. Pointers
// are to device memory unless said otherwise; nothing is kept after the call.
//
// T is the storage type of the call, S its accumulation type (double for float64, else float). A row is one sequence
// at one step; its number is step_row[t] + b. Directions come second to last in all arrays with rows, as on the CPU.
#pragma once

#include "../cells/activation.h"
#include "../types.h"

namespace customlstm {
namespace cuda {

// How products are computed: the type of the operands, and whether on tensor cores.
enum class MathKind : int32_t { kFma32 = 0, kFma64 = 1, kBFloat16 = 2, kFloat16 = 3, kTf32 = 4 };
constexpr int32_t kMathKinds = 5;

struct Sizes {
  int64_t steps;        // T
  int64_t batch;        // B
  int64_t rows;         // of the arrays with rows: T * B, or the number of packed rows
  int64_t hidden_size;  // H
  int64_t state_size;   // P: size of the hidden state h_t, H without projection
  int64_t directions;   // D
  int64_t gates;        // G: pre-activations of the cell
  int64_t cell_states;  // C: states of the cell besides h, which lie one after the other, each of H
  bool bias;
  bool projection;
};

// Keeps a share of the old state: all of it where the mask is 1 and nothing where it is 0, or without a mask `rate`.
struct Zoneout {
  const uint8_t* mask;   // [rows, D, P], of c [rows, D, H] for all states of a unit; or null
  double rate;
};

struct Sequences {
  const int64_t* step_row;  // [T], or null: t * batch
  const int64_t* lengths;   // [B] (values outside 0..T are taken as the nearer bound), or null: all T
  const uint8_t* resets;    // [T, B] or null
  const uint8_t* recurrent_mask;  // [D, B, P] or null: W_hh is multiplied by recurrent_scale h where 1, by 0 where 0
  double recurrent_scale;
  Zoneout zoneout_h, zoneout_c;
};

struct DirectionWeights {
  const void *w_hh, *b_ih, *b_hh, *w_hr;  // T [GH, P], [GH], [GH], [P, H], contiguous; biases and w_hr may be null
  const void* unit_parameters[kMaxUnitParameters];  // T [H] each, as many as the cell has
  struct {
    const void *gain, *bias;                        // T [4H], of the cell state [H]; null where there is no layer norm
  } norms[kNormPlaces];
};

struct WrittenKernels;   // written_kernels.h

// The tables of a piecewise-linear cell live in host memory and travel as kernel arguments.
struct HostCell {
  CellKind kind;            // of a cell that is always there; not looked at where `written` is given
  const void* params;       // host: CellParams<S>
  const void* tables;       // host: S [table_count], what the pointers in params point into
  int64_t table_count;
  int32_t unit_parameters;
  const WrittenKernels* written;   // host: of a cell that a user wrote, else null
  const char* name;                // host: its name, for messages
  bool norms[kNormPlaces];  // of kNormalised: where there is layer norm
};

struct ForwardParams {
  Sizes size;
  Sequences sequences;
  DirectionWeights weights[2];
  HostCell cell;
  const void* gates_x;      // S [rows, D, G, H]: W_ih x, without bias. May be the same array as `gates`
                            // where that has G values a unit; with layer norm always, and then W_ih x stands in its
                            // rows where norm_layout.h says.
  const void* h_0;          // T [D, B, P] or null: zeros
  const void* c_0;          // T [D, B, C, H] or null
  void* output;             // T [rows, D * P]; rows beyond a length are not written
  void* h_n;                // T [D, B, P]
  void* c_n;                // T [D, B, C, H]
  void* c_all;              // S [rows, D, C, H] or null
  void* gates;              // S [rows, D, kSaved and with zoneout of c the C states as the cell left them, H] or null;
                            // with layer norm the values of norm_layout.h instead of kSaved
  void* hidden;             // S [rows, D * H] or null: h before the projection
  void* workspace;          // forward_workspace bytes, 256-byte aligned
};

struct BackwardParams {
  Sizes size;
  Sequences sequences;
  DirectionWeights weights[2];
  HostCell cell;
  const void* c_0;          // T [D, B, C, H] or null
  const void* c_all;        // as forward left them
  const void* gates;
  const void* grad_output;  // T [rows, D * P] or null: zeros
  const void* grad_h_n;     // T [D, B, P] or null
  const void* grad_c_n;     // T [D, B, C, H] or null
  const void* grad_c_all;   // S [rows, D, C, H] or null
  void* grad_gates;         // T [rows, D, G, H]: gradient of the pre-activations; rows beyond a length are not written.
                            // With layer norm that of W_hh h, and the other one that of W_ih x, or null: not wanted.
  void* grad_input_products;
  void* norm_sums;          // S [B, D, kNormSlots, H] or null: gradients of biases and layer norms, summed over the
                            // steps of a sequence; zero before the call
  void* grad_unit_parameters;  // S [rows, D, unit parameters, H] or null: their gradients at each step, as above
  void* grad_state;         // T [rows, D, P] when projecting: gradient of h_t
  void* grad_h_0;           // T [D, B, P] or null: not wanted
  void* grad_c_0;           // T [D, B, C, H] or null
  void* workspace;
};

// For the gradients of W_hh and W_hr: the hidden state that entered each row.
struct PreviousHiddenParams {
  Sizes size;
  Sequences sequences;
  const void* h_0;          // T [D, B, P] or null
  const void* output;       // T [rows, D * P]
  void* previous;           // T [D, rows, P]; zero where the edge is cut, and in rows beyond a length
};

}  // namespace cuda
}  // namespace customlstm
