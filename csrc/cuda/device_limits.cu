// Reads what a device can do, once for each device.
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda_launcher.cuh"
#include "kernels.h"

namespace customlstm {
namespace cuda {
namespace {

constexpr int kOldest = 80;          // compute capability
constexpr int kProbeThreads = 256;   // as many as the recurrences have at most
constexpr int kLargestCluster = 16, kPortableCluster = 8;   // blocks; the first where the device grants it

// Stands for any kernel that takes all of a block's shared memory.
__global__ void __launch_bounds__(kProbeThreads) probe() {}

void check(cudaError_t code, int device, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();   // or the next call that looks would be blamed for it
  throw std::runtime_error("customlstm: CUDA device " + std::to_string(device) + ": " + what + ": " +
                           cudaGetErrorName(code) + ", " + cudaGetErrorString(code));
}

int attribute(cudaDeviceAttr which, int device, const char* what) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), device, what);
  return value;
}

class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&previous_), device, "cudaGetDevice");
    check(cudaSetDevice(device), device, "cudaSetDevice");
  }
  ~CurrentDevice() { cudaSetDevice(previous_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
};

// Clusters of `blocks` that are resident at once when every block has all of the shared memory.
int resident_clusters(int blocks, int shared_bytes) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(kProbeThreads);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, reinterpret_cast<const void*>(&probe), &config) == cudaSuccess) {
    return count;
  }
  cudaGetLastError();   // a device without clusters of this size says so by an error
  return 0;
}

DeviceLimits read_limits(int device) {
  DeviceLimits limits = {};
  limits.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device, "compute capability") +
                      attribute(cudaDevAttrComputeCapabilityMinor, device, "compute capability");
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device, "number of multiprocessors");
  limits.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, "shared memory");
  limits.l2_bytes = attribute(cudaDevAttrL2CacheSize, device, "size of the L2");
  limits.cooperative = attribute(cudaDevAttrCooperativeLaunch, device, "cooperative launch") != 0;
  limits.cluster_blocks = 1;
  limits.clusters = 0;
  if (limits.capability < kOldest) return limits;   // the plan refuses it by its capability

  const CurrentDevice current(device);
  const launching::AllowDuringCapture allow;
  const void* function = reinterpret_cast<const void*>(&probe);
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, function);
  if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    const std::string capability =
        std::to_string(limits.capability / 10) + "." + std::to_string(limits.capability % 10);
    throw std::runtime_error("customlstm: this build has no kernels for CUDA device " + std::to_string(device) +
                             ", compute capability " + capability + ": build it again on this machine, or with " +
                             capability + " in TORCH_CUDA_ARCH_LIST");
  }
  check(code, device, "cudaFuncGetAttributes");
  if (attribute(cudaDevAttrClusterLaunch, device, "cluster launch") == 0) return limits;
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_bytes), device,
        "shared memory of a block");
  int largest = kLargestCluster;
  if (cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess) {
    cudaGetLastError();   // no reason to fail every call, those of other variants too
    largest = kPortableCluster;
  }
  for (int blocks = largest; blocks > 1 && limits.clusters == 0; blocks /= 2) {
    limits.clusters = resident_clusters(blocks, limits.shared_bytes);
    limits.cluster_blocks = limits.clusters > 0 ? blocks : 1;
  }
  return limits;
}

}  // namespace

const DeviceLimits& device_limits(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;   // references into it stay valid
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, read_limits(device)).first->second;
}

void make_current(int device) { check(cudaSetDevice(device), device, "cudaSetDevice"); }

}  // namespace cuda
}  // namespace customlstm
