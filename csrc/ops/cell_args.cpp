#include "cell_args.h"

#include <cmath>

#include "checks.h"

namespace customlstm {

namespace {

constexpr size_t kHeader = 4;   // kind, alpha, beta, number of knots
constexpr size_t kOptions = 4;  // peephole, coupled gates, gate clip, cell clip; all off where nothing follows
constexpr size_t kWithNorms = kOptions + 1;   // and the places of layer norm as a sum of powers of two

const char* const kRoles[3] = {"gate_activation", "cell_activation", "output_activation"};

// Reads one activation at args[at], appends its tables, and returns where the next one starts.
size_t read_activation(const std::vector<double>& args, size_t at, const char* role, std::vector<double>& tables,
                       Activation<double>& f) {
  check(args.size() >= at + kHeader, "cell_args ends before ", role, "; encode the cell with customlstm.Cell.encode()");
  const double kind = args[at];
  check(kind >= 0 && kind < kActivationKinds && kind == std::floor(kind), "cell_args: ", role, " has kind ", kind,
        ", expected an integer from 0 to ", kActivationKinds - 1);
  f = {static_cast<ActivationKind>(static_cast<int32_t>(kind)), 0, args[at + 1], args[at + 2], nullptr, nullptr,
       nullptr};
  const double knots = args[at + 3];
  const bool piecewise = f.kind == ActivationKind::kPiecewiseLinear;
  check(knots == std::floor(knots) && knots >= (piecewise ? 2 : 0) && (piecewise || knots == 0) &&
            2 * knots <= double(args.size() - at - kHeader),
        "cell_args: ", role, " has ", knots, " knots, which does not fit its kind or the number of arguments");
  const size_t n = static_cast<size_t>(knots);
  const double* x = args.data() + at + kHeader;
  const double* y = x + n;
  if (piecewise) {
    f.segments = static_cast<int32_t>(n) - 1;
    for (size_t j = 0; j + 1 < n; ++j) {
      check(std::isfinite(x[j]) && std::isfinite(y[j]) && std::isfinite(x[j + 1]) && std::isfinite(y[j + 1]) &&
                x[j] < x[j + 1],
            "cell_args: the knots of ", role, " must be finite and x strictly increasing");
    }
    tables.insert(tables.end(), x, x + n - 1);
    tables.insert(tables.end(), y, y + n - 1);
    for (size_t j = 0; j + 1 < n; ++j) tables.push_back((y[j + 1] - y[j]) / (x[j + 1] - x[j]));
  }
  return at + kHeader + 2 * n;
}

// The tables of an activation lie one after the other: x, y, slope.
template <class S>
void point_into(const S*& tables, int32_t segments, Activation<S>& f) {
  if (segments == 0) return;
  f.x = tables;
  f.y = f.x + segments;
  f.slope = f.y + segments;
  tables = f.slope + segments;
}

bool is(const Activation<double>& f, ActivationKind kind) { return f.kind == kind; }

Activation<double> clip_to(double limit) {
  const ActivationKind kind = limit > 0 ? ActivationKind::kHardTanh : ActivationKind::kIdentity;
  return {kind, 0, -limit, limit, nullptr, nullptr, nullptr};
}

Activation<float> narrow(const Activation<double>& f) {
  return {f.kind, f.segments, static_cast<float>(f.alpha), static_cast<float>(f.beta), nullptr, nullptr, nullptr};
}

// A name for a message, which Python reads as UTF-8: any bytes may come.
std::string printable(std::string name) {
  for (char& c : name) {
    if (c < ' ' || c > '~') c = '?';
  }
  return name;
}

}  // namespace

CellArgs::CellArgs(const std::string& name, const std::vector<double>& args) {
  if (name == "lstm") {
    read_activations(args);
    return;
  }
  registered_ = find_cell(name);
  check(registered_ != nullptr, "no cell is registered as \"", printable(name),
        "\" in this process: import the module whose @customlstm.cell it is and call "
        "customlstm.jit.register(cell, dtype, device)");
  check(args.empty(), "cell_args has ", args.size(), " values, expected none for the cell ", name);
  unit_parameters_ = registered_->unit_parameters;
}

void CellArgs::read_activations(const std::vector<double>& args) {
  Activation<double>* const activations[3] = {&double_params_.gate, &double_params_.cell, &double_params_.output};
  size_t at = 0;
  for (int k = 0; k < 3; ++k) at = read_activation(args, at, kRoles[k], tables_, *activations[k]);
  read_options(args, at);

  const auto follows_from_value = [](const Activation<double>& f) {
    return is(f, ActivationKind::kSigmoid) || is(f, ActivationKind::kTanh);
  };
  const bool normalised = norms_[kNormInput] || norms_[kNormRecurrent] || norms_[kNormCell];
  // Rows that are normalised are saved before they go through the cell.
  double_params_.saves_values = follows_from_value(double_params_.gate) && follows_from_value(double_params_.cell) &&
                                is(double_params_.gate_clip, ActivationKind::kIdentity) && !normalised;

  float_tables_.assign(tables_.begin(), tables_.end());
  const CellParams<double>& p = double_params_;
  float_params_ = {narrow(p.gate),      narrow(p.cell), narrow(p.output), narrow(p.gate_clip),
                   narrow(p.cell_clip), p.peephole,     p.coupled_gates,  p.saves_values};
  Activation<float>* const float_activations[3] = {&float_params_.gate, &float_params_.cell, &float_params_.output};
  const double* doubles = tables_.data();
  const float* floats = float_tables_.data();
  for (int k = 0; k < 3; ++k) {
    point_into(doubles, activations[k]->segments, *activations[k]);
    point_into(floats, float_activations[k]->segments, *float_activations[k]);
  }
  const bool options = p.peephole || p.coupled_gates || !is(p.gate_clip, ActivationKind::kIdentity) ||
                       !is(p.cell_clip, ActivationKind::kIdentity);
  const bool standard = !options && is(p.gate, ActivationKind::kSigmoid) && is(p.cell, ActivationKind::kTanh) &&
                        is(p.output, ActivationKind::kTanh);
  kind_ = normalised ? CellKind::kNormalised : standard ? CellKind::kStandard : CellKind::kConfigurable;
}

void CellArgs::read_options(const std::vector<double>& args, size_t at) {
  const size_t left = args.size() - at;
  check(left == 0 || left == kOptions || left == kWithNorms, "cell_args has ", args.size(), " values, of which ", at,
        " describe activations; expected none, ", kOptions, " or ", kWithNorms,
        " more. This library is older or newer than the Python package, rebuild it");
  const double none[kOptions] = {};
  const double* const options = left == 0 ? none : args.data() + at;
  for (int k = 0; k < 2; ++k) {
    check(options[k] == 0 || options[k] == 1, "cell_args: ", k == 0 ? "peephole" : "coupled_gates", " is ", options[k],
          ", expected 0 or 1");
    const double clip = options[2 + k];
    check(clip >= 0 && std::isfinite(clip), "cell_args: ", k == 0 ? "gate_clip" : "cell_clip", " is ", clip,
          ", expected a positive number, or 0 for none");
  }
  if (left == kWithNorms) {
    const double mask = options[kOptions];
    check(mask >= 1 && mask < double(1 << kNormPlaces) && mask == std::floor(mask), "cell_args: layer_norm is ", mask,
          ", expected an integer from 1 to ", (1 << kNormPlaces) - 1);
    for (int place = 0; place < kNormPlaces; ++place) norms_[place] = static_cast<int>(mask) >> place & 1;
  }
  double_params_.peephole = options[0] != 0;
  double_params_.coupled_gates = options[1] != 0;
  double_params_.gate_clip = clip_to(options[2]);
  double_params_.cell_clip = clip_to(options[3]);
  if (!double_params_.peephole) return;
  unit_parameters_ = {"peephole_i", "peephole_f", "peephole_o"};
  if (double_params_.coupled_gates) unit_parameters_ = {"peephole_i", "peephole_o"};
}

const void* CellArgs::params(StorageType type) const {
  return type == StorageType::kFloat64 ? static_cast<const void*>(&double_params_) : &float_params_;
}

const void* CellArgs::tables(StorageType type) const {
  return type == StorageType::kFloat64 ? static_cast<const void*>(tables_.data()) : float_tables_.data();
}

}  // namespace customlstm
