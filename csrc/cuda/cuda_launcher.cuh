// Starts kernels on a stream: the Launcher of launcher.h for a GPU. Creates nothing, waits for nothing, and works
// while a CUDA graph is captured. The kernel runs on the current device, which must be the stream's own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "device/device.h"
#include "launcher.h"

namespace customlstm {
namespace cuda {
namespace launching {

// __grid_constant__: the kernel may take the address of its arguments without a copy of them in local memory.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::run(params);
}

inline std::string describe(const char* kernel, const Launch& launch) {
  std::string text = std::string("customlstm: kernel ") + kernel + ", grid (" + std::to_string(launch.grid_x) + ", " +
                     std::to_string(launch.grid_y) + ", " + std::to_string(launch.grid_z) + ") of " +
                     std::to_string(launch.threads) + " threads, " + std::to_string(launch.shared_bytes) +
                     " bytes of shared memory";
  if (launch.cluster > 1) text += ", clusters of " + std::to_string(launch.cluster);
  if (launch.cooperative) text += ", cooperative";
  return text;
}

[[noreturn]] inline void refuse(const char* kernel, const Launch& launch, const std::string& why) {
  throw std::runtime_error(describe(kernel, launch) + ": " + why);
}

inline void check(cudaError_t code, const char* kernel, const Launch& launch) {
  if (code == cudaSuccess) return;
  cudaGetLastError();   // or the next call that looks, maybe torch's, would be blamed for it
  refuse(kernel, launch, std::string(cudaGetErrorName(code)) + ", " + cudaGetErrorString(code));
}

// While a graph is captured, other threads' captures included, a call that may load a kernel's code is allowed only
// in this mode. Nothing below enqueues work.
class AllowDuringCapture {
 public:
  AllowDuringCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~AllowDuringCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  AllowDuringCapture(const AllowDuringCapture&) = delete;
  AllowDuringCapture& operator=(const AllowDuringCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Attributes and cluster dimension as the runtime wants them; refers to itself, so it stays where it is.
class Configuration {
 public:
  Configuration(const Launch& launch, cudaStream_t stream) {
    config_.gridDim = dim3(unsigned(launch.grid_x), unsigned(launch.grid_y), unsigned(launch.grid_z));
    config_.blockDim = dim3(unsigned(launch.threads));
    config_.dynamicSmemBytes = size_t(launch.shared_bytes);
    config_.stream = stream;
    config_.attrs = attributes_;
    if (launch.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = unsigned(launch.cluster);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (launch.cooperative) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;
  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchConfig_t config_ = {};
  cudaLaunchAttribute attributes_[2] = {};
};

// What is known of a kernel on one device.
struct Prepared {
  int64_t largest_shared = -1;        // dynamic shared memory that it may be given; -1: not asked yet
  int multiprocessors = 0;
  bool clusters_allowed = false;      // of more than 8 blocks
  // By threads, shared memory and cluster: blocks that can be resident at once on the whole device.
  std::map<std::tuple<int32_t, int64_t, int32_t>, int64_t> resident;
};

// Readies `function` for the launch, once for each device, and refuses what could not run. Any number of threads.
inline void prepare(const void* function, const char* kernel, const Launch& launch,
                    const Configuration& configuration) {
  // One lock for all kernels: after the first launch it guards a look-up, a fraction of what a launch costs.
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, Prepared> all;

  int device = 0;
  check(cudaGetDevice(&device), kernel, launch);
  const std::lock_guard<std::mutex> lock(mutex);
  Prepared& prepared = all[{function, device}];
  if (prepared.largest_shared < 0) {
    const AllowDuringCapture allow;
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, function), kernel, launch);
    int limit = 0;
    check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), kernel, launch);
    check(cudaDeviceGetAttribute(&prepared.multiprocessors, cudaDevAttrMultiProcessorCount, device), kernel, launch);
    const int64_t largest = limit - int64_t(attributes.sharedSizeBytes);
    // To the most there is: how much a launch takes from the L1 depends on what it asks for, not on this limit.
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(largest)), kernel, launch);
    prepared.largest_shared = largest;
  }
  if (launch.shared_bytes > prepared.largest_shared) {
    refuse(kernel, launch, "the device has " + std::to_string(prepared.largest_shared) + " bytes for a block");
  }
  if (launch.cluster > 8 && !prepared.clusters_allowed) {
    const AllowDuringCapture allow;
    check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), kernel, launch);
    prepared.clusters_allowed = true;
  }
  if (launch.cluster <= 1 && !launch.cooperative) return;

  const auto [found, is_new] = prepared.resident.try_emplace({launch.threads, launch.shared_bytes, launch.cluster}, -1);
  int64_t& resident = found->second;
  if (resident < 0) {
    const AllowDuringCapture allow;
    int count = 0;
    if (launch.cluster > 1) {
      check(cudaOccupancyMaxActiveClusters(&count, function, configuration.get()), kernel, launch);
      resident = int64_t(count) * launch.cluster;
    } else {
      check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, function, launch.threads,
                                                          size_t(launch.shared_bytes)),
            kernel, launch);
      resident = int64_t(count) * prepared.multiprocessors;
    }
  }
  // Clusters need their own blocks to be resident, which the device sees to; a cooperative launch needs all of them.
  const int64_t blocks = int64_t(launch.grid_x) * launch.grid_y * launch.grid_z;
  const int64_t needed = launch.cooperative ? blocks : launch.cluster;
  if (resident < needed) {
    refuse(kernel, launch,
           std::to_string(needed) + " blocks have to be resident at once, and the device holds " +
               std::to_string(resident));
  }
}

}  // namespace launching

// The stream that the functions of kernels.h get as void*.
inline cudaStream_t make_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

struct CudaLauncher {
  cudaStream_t stream;

  template <class Kernel>
  void launch(const Launch& launch, const typename Kernel::Params& params) const {
    static_assert(Kernel::kThreads % 32 == 0 && Kernel::kThreads <= 1024, "whole warps, at most 1024 threads");
    start(reinterpret_cast<const void*>(&launching::entry<Kernel>), Kernel::kName, launch, params);
  }

  // The handle is a cudaKernel_t, which all functions of the runtime used here take where they take a kernel's address.
  template <class Params>
  void launch_loaded(const void* handle, const char* name, int most_threads, const Launch& launch,
                     const Params& params) const {
    if (launch.threads > most_threads) {
      launching::refuse(name, launch, "it was compiled for at most " + std::to_string(most_threads) + " threads");
    }
    start(handle, name, launch, params);
  }

 private:
  template <class Params>
  void start(const void* function, const char* name, const Launch& launch, const Params& params) const {
    static_assert(std::is_trivially_copyable<Params>::value, "arguments are copied as bytes");
    static_assert(sizeof(Params) <= 4096, "a launch takes 4 KB of arguments");
    const launching::Configuration configuration(launch, stream);
    launching::prepare(function, name, launch, configuration);
    void* arguments[] = {const_cast<Params*>(&params)};
    launching::check(cudaLaunchKernelExC(configuration.get(), function, arguments), name, launch);
  }
};

}  // namespace cuda
}  // namespace customlstm
