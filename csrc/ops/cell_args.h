// Decodes the op's description of a cell; the encoding is written down in customlstm/cells/options.py.
#pragma once

#include <string>
#include <vector>

#include "../cells/activation.h"
#include "../types.h"
#include "cell_registry.h"

namespace customlstm {

class CellArgs {
 public:
  // Throws std::runtime_error for a cell that is not registered or whose arguments are malformed.
  CellArgs(const std::string& name, const std::vector<double>& args);

  // Which of the cells that are always there; of one that a user wrote, `registered`.
  CellKind kind() const { return kind_; }
  const RegisteredCell* registered() const { return registered_; }
  // Pre-activations, states besides h, and values saved for backward, of one hidden unit.
  int64_t gates() const { return registered_ ? registered_->sizes.gates : 4; }
  int64_t states() const { return registered_ ? registered_->sizes.states : 1; }
  int64_t saved() const {
    if (registered_) return registered_->sizes.saved;
    return norm(kNormInput) || norm(kNormRecurrent) ? 8 : 4;   // either product as it was, with the other or the gates
  }
  // Whether there is layer norm at this place. Its gain and bias follow the per-unit parameters of each direction.
  bool norm(int place) const { return norms_[place]; }
  // Parameters with one value a hidden unit, which follow the weights of each direction in this order.
  const std::vector<std::string>& unit_parameters() const { return unit_parameters_; }
  // CellParams of the accumulation type of `type`; lives as long as this object.
  const void* params(StorageType type) const;
  // What the pointers in params point into: values of the accumulation type, one activation after the other.
  const void* tables(StorageType type) const;
  int64_t table_count() const { return static_cast<int64_t>(tables_.size()); }

 private:
  void read_activations(const std::vector<double>& args);
  void read_options(const std::vector<double>& args, size_t at);

  CellKind kind_ = CellKind::kStandard;
  const RegisteredCell* registered_ = nullptr;
  std::vector<std::string> unit_parameters_;
  bool norms_[kNormPlaces] = {};
  std::vector<double> tables_;
  std::vector<float> float_tables_;
  CellParams<double> double_params_ = {};
  CellParams<float> float_params_ = {};
};

}  // namespace customlstm
