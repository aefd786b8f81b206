#include "cpu_stream.h"

#include <cstring>

#include "../cpu/plan.h"
#include "cell_args.h"
#include "dealt_sequences.h"
#include "run_kernel.h"
#include "scratch.h"
#include "threads.h"

namespace customlstm {

namespace {

using torch::stable::new_empty;

constexpr uint64_t kMagic = 0x7453746d746c7543;
constexpr size_t kAlignment = 64;

size_t align(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Stands at the beginning of a packed tensor; the cell's arguments and the packed weights follow. Enumerations and
// truth values are whole numbers here, because any bytes may come back.
struct Header {
  uint64_t magic;
  char isa[16];
  int64_t type;            // StorageType
  int64_t bias, projection, unit_parameters;
  int64_t w_ih, w_hh;      // WeightAccess
  int64_t batch, input_size, hidden_size, output_size;
  char cell[64];
  int64_t cell_args;      // number of doubles
  int64_t weights_begin;  // bytes from the beginning
  int64_t weights_bytes;
};

Geometry geometry(const Header& header, int64_t gates) {
  Geometry g = {};
  g.batch = header.batch;
  g.input_size = header.input_size;
  g.hidden_size = header.hidden_size;
  g.output_size = header.output_size;
  g.directions = 1;
  g.gates = gates;
  g.unit_parameters = header.unit_parameters;
  g.bias = header.bias != 0;
  g.projection = header.projection != 0;
  return g;
}

bool is_size(int64_t size) { return size >= 0 && size <= int64_t{1} << 31; }
bool is_access(int64_t access) {
  return access == static_cast<int64_t>(WeightAccess::kPacked) ||
         access == static_cast<int64_t>(WeightAccess::kAlongRows);
}
bool is_plausible(const Header& h) {
  return h.type >= 0 && h.type < kStorageTypes && is_access(h.w_ih) && is_access(h.w_hh) && is_size(h.batch) &&
         is_size(h.input_size) && is_size(h.hidden_size) && is_size(h.output_size) && is_size(h.cell_args) &&
         h.batch > 0 && h.hidden_size > 0 && h.output_size > 0 &&
         (h.projection != 0 || h.output_size == h.hidden_size) && h.unit_parameters >= 0 &&
         h.unit_parameters <= kMaxUnitParameters &&
         double(h.hidden_size) * double(h.input_size + h.output_size) < 1e15;
}

// Weights that are packed for good are worth packing even for a single step.
WeightAccess access_to_keep(const Geometry& g, int64_t depth) {
  const bool along_rows = plan_access(g, depth, 0) == WeightAccess::kAlongRows;
  return along_rows ? WeightAccess::kAlongRows : WeightAccess::kPacked;
}

ForwardParams parameters(const Header& header, int64_t gates) {
  ForwardParams p = {};
  p.g = geometry(header, gates);
  p.plan.w_ih = static_cast<WeightAccess>(header.w_ih);
  p.plan.w_hh = static_cast<WeightAccess>(header.w_hh);
  return p;
}

const ForwardKernels& forward_kernels(const Header& header, const CellArgs& cell) {
  return cpu_kernels(cell, static_cast<StorageType>(header.type)).forward;
}

size_t weights_bytes(const Header& header, const CellArgs& cell) {
  return forward_kernels(header, cell).packed_bytes(parameters(header, cell.gates()));
}

const char* const kRemedy = "; make it anew with lstm_pack, in this process";

// A packed tensor whose header fits its bytes: whatever bytes come, only sizes that fit them are used.
struct Packed {
  explicit Packed(const Tensor& packed);
  const char* const bytes;
  const Header& header;
  CellArgs cell;

 private:
  static const Header& checked_header(const Tensor& packed);
  static CellArgs read_cell(const Header& header, const char* bytes);
};

const Header& Packed::checked_header(const Tensor& packed) {
  check(packed.is_cpu() && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
            packed.numel() >= static_cast<int64_t>(sizeof(Header)) &&
            reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % kAlignment == 0,
        "packed has shape ", shape_of(packed), " and type ", name_of(packed.scalar_type()),
        ", which is not what lstm_pack returns", kRemedy);
  const Header& header = *static_cast<const Header*>(packed.const_data_ptr());
  check(header.magic == kMagic, "packed was not made by lstm_pack", kRemedy);
  check(std::strncmp(header.isa, kernels().name, sizeof(header.isa)) == 0,
        "packed was made for another instruction set than ", kernels().name, kRemedy);
  check(is_plausible(header), "packed is damaged", kRemedy);
  const int64_t args_end = static_cast<int64_t>(sizeof(Header) + header.cell_args * sizeof(double));
  check(args_end <= header.weights_begin && header.weights_begin <= packed.numel() &&
            header.weights_bytes == packed.numel() - header.weights_begin &&
            header.weights_begin % static_cast<int64_t>(kAlignment) == 0 && header.cell[sizeof(header.cell) - 1] == 0,
        "packed is damaged", kRemedy);
  return header;
}

CellArgs Packed::read_cell(const Header& header, const char* bytes) {
  const double* const args = reinterpret_cast<const double*>(bytes + sizeof(Header));
  return CellArgs(header.cell, std::vector<double>(args, args + header.cell_args));
}

void check_has_packed_step(const CellArgs& cell) {
  check(cell.kind() != CellKind::kNormalised, "layer norm has no packed step; call lstm_layer with the state instead");
}

Packed::Packed(const Tensor& packed)
    : bytes(static_cast<const char*>(packed.const_data_ptr())),
      header(checked_header(packed)),
      cell(read_cell(header, bytes)) {
  check_has_packed_step(cell);
  check(static_cast<int64_t>(cell.unit_parameters().size()) == header.unit_parameters &&
            header.weights_bytes == static_cast<int64_t>(weights_bytes(header, cell)),
        "packed is damaged", kRemedy);
}

}  // namespace

Tensor cpu_pack(const std::vector<Tensor>& weights, const std::string& cell, const std::vector<double>& cell_args,
                bool bias, bool projection, int64_t batch) {
  const CellArgs checked(cell, cell_args);
  check_has_packed_step(checked);
  const size_t w_hr = bias ? 4 : 2, first_parameter = w_hr + (projection ? 1 : 0);
  const size_t count = first_parameter + checked.unit_parameters().size();
  check(weights.size() == count, "weights has ", weights.size(), " tensors, expected ", count,
        " for this bias, projection and cell");
  check(batch > 0, "batch is ", batch, ", expected at least 1");
  const Tensor &w_ih = weights[0], &w_hh = weights[1];
  check(w_ih.is_cpu(), "weight_ih is not on the CPU; this kernel runs there only");
  const int64_t gates = checked.gates();
  check(w_hh.dim() == 2 && w_hh.size(0) % gates == 0 && w_hh.size(0) > 0 && w_hh.size(1) > 0, "weight_hh has shape ",
        shape_of(w_hh), ", expected [", gates, " * hidden_size, size of the hidden state]");
  check(w_ih.dim() == 2, "weight_ih has shape ", shape_of(w_ih), ", expected [", gates, " * hidden_size, input_size]");
  Header header = {};
  header.magic = kMagic;
  std::strncpy(header.isa, kernels().name, sizeof(header.isa) - 1);
  header.type = static_cast<int64_t>(storage_type(w_ih));
  header.bias = bias;
  header.projection = projection;
  header.unit_parameters = static_cast<int64_t>(checked.unit_parameters().size());
  header.batch = batch;
  header.input_size = w_ih.size(1);
  header.hidden_size = w_hh.size(0) / gates;
  header.output_size = w_hh.size(1);
  check(cell.size() < sizeof(header.cell), "the name of the cell, ", cell, ", has more than ", sizeof(header.cell) - 1,
        " characters");
  std::strncpy(header.cell, cell.c_str(), sizeof(header.cell) - 1);
  header.cell_args = static_cast<int64_t>(cell_args.size());
  check_shape("weight_ih", w_ih, {gates * header.hidden_size, header.input_size});
  check(projection || header.output_size == header.hidden_size, "weight_hh has shape ", shape_of(w_hh),
        ", expected [", gates, " * hidden_size, hidden_size] without projection");
  if (bias) {
    check_shape("bias_ih", weights[2], {gates * header.hidden_size});
    check_shape("bias_hh", weights[3], {gates * header.hidden_size});
  }
  if (projection) check_shape("weight_hr", weights[w_hr], {header.output_size, header.hidden_size});
  for (size_t k = first_parameter; k < count; ++k) {
    check_shape(checked.unit_parameters()[k - first_parameter].c_str(), weights[k], {header.hidden_size});
  }
  std::vector<Contiguous> contiguous;
  for (const Tensor& weight : weights) {
    check_like("each of the weights", weight, w_ih);
    contiguous.emplace_back(weight);
  }
  const Geometry g = geometry(header, gates);
  header.w_ih = static_cast<int64_t>(access_to_keep(g, g.input_size));
  header.w_hh = static_cast<int64_t>(access_to_keep(g, g.output_size));
  header.weights_begin = static_cast<int64_t>(align(sizeof(Header) + cell_args.size() * sizeof(double)));
  header.weights_bytes = static_cast<int64_t>(weights_bytes(header, checked));

  Tensor packed = new_empty(w_ih, {header.weights_begin + header.weights_bytes}, ScalarType::Byte);
  char* const bytes = static_cast<char*>(packed.mutable_data_ptr());
  check(reinterpret_cast<uintptr_t>(bytes) % kAlignment == 0, "torch gave memory that is not aligned to 64 bytes");
  std::memset(bytes, 0, static_cast<size_t>(header.weights_begin));
  std::memcpy(bytes, &header, sizeof(Header));
  if (!cell_args.empty()) std::memcpy(bytes + sizeof(Header), cell_args.data(), cell_args.size() * sizeof(double));
  ForwardParams p = parameters(header, gates);
  p.weights[0] = {contiguous[0].data(), contiguous[1].data(), bias ? contiguous[2].data() : nullptr,
                  bias ? contiguous[3].data() : nullptr, projection ? contiguous[w_hr].data() : nullptr, {}, {}};
  for (size_t k = first_parameter; k < count; ++k) {
    p.weights[0].unit_parameters[k - first_parameter] = contiguous[k].data();
  }
  forward_kernels(header, checked).pack(p, bytes + header.weights_begin);
  return packed;
}

Tensor cpu_stream(const Tensor& packed, const Tensor& input, const Tensor& h, const Tensor& c) {
  const Packed own(packed);
  const Header& header = own.header;
  check(input.dim() == 3, "input has shape ", shape_of(input), ", expected [steps, batch, features]");
  const StorageType type = static_cast<StorageType>(header.type);
  check(storage_type(input) == type && input.is_cpu(), "input has type ", name_of(input.scalar_type()),
        ", the packed weights another; pack weights of the input's dtype");
  check(input.size(1) == header.batch && input.size(2) == header.input_size, "input has shape ", shape_of(input),
        ", expected [steps, ", header.batch, ", ", header.input_size, "]");
  check_like("h", h, input);
  check_like("c", c, input);
  check_shape("h", h, {header.batch, header.output_size});
  check_shape("c", c, {header.batch, own.cell.states() * header.hidden_size});
  check(h.is_contiguous() && c.is_contiguous(), "h and c must be contiguous: they are updated in place");

  ForwardParams p = parameters(header, own.cell.gates());
  p.g.steps = input.size(0);
  Plan plan = plan_call(p.g, false);
  plan.w_ih = p.plan.w_ih;   // as the weights were packed
  plan.w_hh = p.plan.w_hh;
  p.plan = plan;
  const std::optional<Tensor> none;
  const Sequences sequences(input, header.batch, none, none, none);
  const DealtSequences dealt(sequences, input, p.plan);
  dealt.fill(p.g);
  p.packed = own.bytes + header.weights_begin;
  p.cell_params = own.cell.params(type);
  p.input = input.const_data_ptr();
  p.h_0 = h.const_data_ptr();
  p.c_0 = c.const_data_ptr();
  Tensor output = new_empty(input, {p.g.steps, header.batch, header.output_size}, input.scalar_type());
  p.output = output.mutable_data_ptr();
  p.h_n = h.mutable_data_ptr();   // a row's state is read at its beginning and written at its end
  p.c_n = c.mutable_data_ptr();
  const ForwardKernels& kernel = forward_kernels(header, own.cell);
  const Scratch workspace(kernel.workspace(p));
  p.workspace = workspace.data();
  run_kernel(kernel.run, p);
  return output;
}

}  // namespace customlstm
