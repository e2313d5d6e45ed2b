// Stands in for CUDA's header, so that g++ compiles the .cu files for the CPU: what they use of it, and no
// more. Threads are fibers: emulator.h runs them.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

// What reads a number of the thread that runs.
struct Coordinate {
  unsigned (*get)();
  operator unsigned() const { return get(); }
};
struct Coordinates {
  Coordinate x;
};
inline const Coordinates threadIdx{{[] { return mtk_emulator::fiber().thread.x; }}};
inline const Coordinates blockIdx{{[] { return mtk_emulator::fiber().block.x; }}};
inline const Coordinates blockDim{{[] { return mtk_emulator::grid().threads.x; }}};
inline const Coordinates gridDim{{[] { return mtk_emulator::grid().blocks.x; }}};

using dim3 = mtk_emulator::Index;
using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNoKernelImageForDevice = 209 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
constexpr unsigned cudaStreamNonBlocking = 1;

struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// ---- device

inline void __syncthreads() { mtk_emulator::wait_for_block(); }
template <class T>
T __shfl_xor_sync(unsigned, T x, int lanes) {
  return mtk_emulator::exchange(x, lanes);
}
inline void __threadfence() {}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline unsigned atomicAdd(unsigned* to, unsigned x) {
  const unsigned before = *to;
  *to += x;
  return before;
}
inline unsigned __clusterRelativeBlockRank() {
  return mtk_emulator::fiber().block.x % mtk_emulator::grid().cluster;
}
inline void __cluster_barrier_arrive() {}
inline void __cluster_barrier_wait() { mtk_emulator::wait_for_cluster(); }
inline void* __cluster_map_shared_rank(void* mine, unsigned rank) {
  return mtk_emulator::shared_of(mine, rank);
}

// ---- host

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "refused by the emulator"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const mtk_emulator::Device& device = mtk_emulator::device();
  *value = attribute == cudaDevAttrMultiProcessorCount            ? device.multiprocessors
           : attribute == cudaDevAttrComputeCapabilityMajor       ? device.major
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? device.shared
                                                                  : device.shared + 1024;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  return attributes->ptxVersion = 90, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel*, const cudaLaunchConfig_t* config) {
  const int size = static_cast<int>(config->attrs->val.clusterDim.x);
  *clusters = static_cast<int>(config->dynamicSmemBytes) <= mtk_emulator::device().shared ? 16 / size + 1 : 0;
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
inline cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long* id) { return *id = 0, cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = nullptr, cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return *memory ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}
template <class... Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Params... args) {
  const unsigned cluster = config->numAttrs ? config->attrs->val.clusterDim.x : 1;
  const mtk_emulator::Grid grid{config->gridDim, config->blockDim, cluster};
  return mtk_emulator::run(grid, config->dynamicSmemBytes, [&] { kernel(args...); }) ? cudaSuccess
                                                                                     : cudaErrorInvalidValue;
}
