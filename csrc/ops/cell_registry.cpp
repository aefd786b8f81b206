#include "cell_registry.h"

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "checks.h"

namespace customlstm {

namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<RegisteredCell>> cells;
  std::map<std::tuple<const RegisteredCell*, cuda::MathKind, int>, std::unique_ptr<cuda::WrittenKernels>> cuda;
};

Registry& registry() {
  static Registry* const registry = new Registry;   // never destroyed: threads may outlive static objects
  return *registry;
}

void check_size(const char* name, int64_t size, int64_t most) {
  check(size >= 1 && size <= most, name, " is ", size, ", expected 1 to ", most);
}

}  // namespace

const RegisteredCell* find_cell(const std::string& name) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.cells.find(name);
  return found == all.cells.end() ? nullptr : found->second.get();
}

const cuda::WrittenKernels* find_cuda_kernels(const RegisteredCell& cell, cuda::MathKind math, int capability) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.cuda.find({&cell, math, capability});
  return found == all.cuda.end() ? nullptr : found->second.get();
}

void register_cell(const std::string& name, const CellSizes& sizes, const std::vector<std::string>& unit_parameters) {
  check_size("gates", sizes.gates, kMaxGates);
  check_size("states", sizes.states, kMaxStates);
  check_size("saved", sizes.saved, kMaxSaved);
  check(sizes.unit_parameters == static_cast<int64_t>(unit_parameters.size()) &&
            sizes.unit_parameters <= kMaxUnitParameters,
        "the cell ", name, " has ", sizes.unit_parameters, " unit parameters and ", unit_parameters.size(),
        " names of them, expected as many, and at most ", kMaxUnitParameters);
  check(name != "lstm", "the name lstm is taken");
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::unique_ptr<RegisteredCell>& cell = all.cells[name];
  if (cell == nullptr) {
    cell.reset(new RegisteredCell(sizes, unit_parameters));
    return;
  }
  check(cell->sizes.gates == sizes.gates && cell->sizes.states == sizes.states && cell->sizes.saved == sizes.saved &&
            cell->unit_parameters == unit_parameters,
        "a cell with other sizes is registered as ", name);
}

void register_cpu_kernels(const std::string& name, StorageType type, const CellKernels& kernels) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.cells.find(name);
  check(found != all.cells.end(), "no cell is registered as ", name);
  std::atomic<const CellKernels*>& own = found->second->cpu[static_cast<int>(type)];
  if (own == nullptr) own = new CellKernels(kernels);
}

void register_cuda_kernels(const std::string& name, cuda::MathKind math, int capability,
                           const cuda::WrittenKernels& kernels) {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.cells.find(name);
  check(found != all.cells.end(), "no cell is registered as ", name);
  std::unique_ptr<cuda::WrittenKernels>& own = all.cuda[{found->second.get(), math, capability}];
  if (own == nullptr) own.reset(new cuda::WrittenKernels(kernels));
}

}  // namespace customlstm
