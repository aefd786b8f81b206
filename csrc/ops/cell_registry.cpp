#include "cell_registry.h"

#include <map>
#include <memory>
#include <mutex>

#include "checks.h"

namespace customlstm {

namespace {

constexpr int64_t kMaxGates = 8, kMaxStates = 4, kMaxSaved = 16;

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<RegisteredCell>> cells;
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

void register_cell(const std::string& name, int64_t gates, int64_t states, int64_t saved,
                   const std::vector<std::string>& unit_parameters) {
  check_size("gates", gates, kMaxGates);
  check_size("states", states, kMaxStates);
  check_size("saved", saved, kMaxSaved);
  check(unit_parameters.size() <= kMaxUnitParameters, "unit_parameters has ", unit_parameters.size(),
        " names, expected at most ", kMaxUnitParameters);
  check(name != "lstm", "the name lstm is taken");
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::unique_ptr<RegisteredCell>& cell = all.cells[name];
  if (cell == nullptr) {
    cell.reset(new RegisteredCell(gates, states, saved, unit_parameters));
    return;
  }
  check(cell->gates == gates && cell->states == states && cell->saved == saved &&
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

}  // namespace customlstm
