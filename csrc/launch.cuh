// What the .cu files share. Host: errors, the device, launches, scratch memory. Device: packs of 16 bytes,
// conversions.
#pragma once
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "dtype.h"

namespace mtk {

// ---- host

inline void check(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it again
  std::string text = std::string(op) + ": CUDA error: " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    text += "; the kernels are built for sm " MTK_CUDA_ARCHS ", reinstall with MTKERNELS_CUDA_ARCHS";
  }
  throw std::runtime_error(text);
}

class DeviceGuard {
 public:
  DeviceGuard(int device, const char* op) : device_(device) {
    check(cudaGetDevice(&before_), op);
    if (before_ != device) check(cudaSetDevice(device), op);
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  int before_ = 0, device_;
};

struct DeviceLimits {
  int sms;               // multiprocessors
  int shared_per_block;  // bytes, after opting in
  int shared_per_sm;
  int major;  // compute capability
};

inline DeviceLimits device_limits(int device, const char* op) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  DeviceLimits limits{};
  check(cudaDeviceGetAttribute(&limits.sms, cudaDevAttrMultiProcessorCount, device), op);
  check(cudaDeviceGetAttribute(&limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        op);
  check(cudaDeviceGetAttribute(&limits.shared_per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
        op);
  check(cudaDeviceGetAttribute(&limits.major, cudaDevAttrComputeCapabilityMajor, device), op);
  return known[device] = limits;
}

struct LaunchShape {
  int64_t blocks;
  int threads;
  int64_t shared;  // bytes
  void* stream;
  int cluster = 1;  // blocks that share their shared memory; the blocks are a multiple of it
};

// Raises a kernel's limits to what a launch needs; they hold for the current device.
template <class... Params>
void allow(const char* op, void (*kernel)(Params...), const LaunchShape& shape) {
  constexpr int64_t kDefaultShared = 48 * 1024;
  constexpr int kPortableCluster = 8;
  if (shape.shared > kDefaultShared) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared)),
          op);
  }
  if (shape.cluster > kPortableCluster)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), op);
}

// `cluster` lives as long as what is returned.
inline cudaLaunchConfig_t launch_config(const LaunchShape& shape, cudaLaunchAttribute& cluster) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared);
  config.stream = static_cast<cudaStream_t>(shape.stream);
  if (shape.cluster == 1) return config;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return config;
}

template <class... Params>
void launch(const char* op, void (*kernel)(Params...), const LaunchShape& shape, const Params&... args) {
  allow(op, kernel, shape);
  cudaLaunchAttribute cluster{};
  const cudaLaunchConfig_t config = launch_config(shape, cluster);
  check(cudaLaunchKernelEx(&config, kernel, args...), op);
}

inline bool is_capturing(void* stream, const char* op) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), op);
  return status != cudaStreamCaptureStatusNone;
}

// While it lives, this thread may allocate although a stream is being captured: nothing it does belongs in
// the graph.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const char* op) { check(cudaThreadExchangeStreamCaptureMode(&mode_), op); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// New memory of the current device holding a copy of `from`, or zeros where that is null. Goes through a
// stream of its own and waits for that alone, so that work in flight is not waited for and the memory can be
// used on any stream.
inline void* new_device_memory(const void* from, size_t bytes, const char* op) {
  const RelaxedCapture relaxed(op);
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  check(cudaMalloc(&memory, bytes), op);
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) {
    error = from ? cudaMemcpyAsync(memory, from, bytes, cudaMemcpyHostToDevice, stream)
                 : cudaMemsetAsync(memory, 0, bytes, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  if (error != cudaSuccess) cudaFree(memory);
  check(error, op);
  return memory;
}

constexpr int kMaxPartials = 4096;  // blocks of a launch that reduces
constexpr int kMaxSums = 8;         // that it reduces at once

// What a reduction within one launch needs: sums per block, and the count of blocks that have written theirs.
// The last block sets the count back to 0, so that the next launch finds it so.
struct Scratch {
  double* partials;  // [blocks][sums]
  double* kept;      // one number that a launch leaves for the next
  unsigned* ticket;
};

inline Scratch new_scratch(int64_t blocks, const char* op) {
  const size_t count = static_cast<size_t>(blocks) * kMaxSums;
  double* const partials = static_cast<double*>(new_device_memory(nullptr, (count + 2) * sizeof(double), op));
  return {partials, partials + count, reinterpret_cast<unsigned*>(partials + count + 1)};
}

// One for each stream, kept for the life of the process: launches of a stream do not overlap. A captured
// launch gets its own, of the size it needs, because its graph may be replayed on another stream, beside
// other work of this one.
inline Scratch scratch_of(int device, void* stream, int64_t blocks, const char* op) {
  if (is_capturing(stream, op)) return new_scratch(blocks, op);
  static std::mutex mutex;
  static std::map<std::pair<int, unsigned long long>, Scratch> known;
  unsigned long long id = 0;  // not the handle: cudaStreamPerThread is another stream on each thread
  check(cudaStreamGetId(static_cast<cudaStream_t>(stream), &id), op);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({device, id});
  if (found != known.end()) return found->second;
  return known[{device, id}] = new_scratch(kMaxPartials, op);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- device

template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

// A pack as it lies in registers between its load and its use: halves held singly would take a register each.
template <int kBytes>
struct alignas(kBytes < 16 ? kBytes : 16) Words {
  static_assert(kBytes % 4 == 0, "a pack is whole words");
  uint32_t at[kBytes / 4];
};

template <class T, int N>
using WordsOf = Words<N* static_cast<int>(sizeof(T))>;

// Tells the compiler what it cannot see of an address that it has read from memory.
template <class T>
__device__ inline T* global_pointer(T* p) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(p));
#endif
  return p;
}

template <int N, class T>
__device__ inline WordsOf<T, N> load_words(const T* from) {
  return *reinterpret_cast<const WordsOf<T, N>*>(from);
}

template <class T, int N>
__device__ inline Pack<T, N> unpack(const WordsOf<T, N>& words) {
  return bit_cast<Pack<T, N>>(words);
}

template <class T, int N>
__device__ inline void store_pack(T* to, const Pack<T, N>& pack) {
  *reinterpret_cast<WordsOf<T, N>*>(to) = bit_cast<WordsOf<T, N>>(pack);
}

// Elements before `p` reaches a multiple of N elements.
template <int N, class T>
__device__ inline int64_t elements_to_alignment(const T* p) {
  return static_cast<int64_t>(-(reinterpret_cast<uint64_t>(p) / sizeof(T)) % N);
}

// To the accumulator and back, in one instruction where there is one; dtype.h says what they mean.
template <class Acc, class T>
__device__ inline Acc widened(T x) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, half_bits>) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
  }
#endif
  return static_cast<Acc>(widen(x));
}

template <class T, class Acc>
__device__ inline T narrowed(Acc x) {
  T result;
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, half_bits>) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(static_cast<float>(x)));
    return result;
  }
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, bfloat16_bits>) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(static_cast<float>(x)));
    return result;
  }
#endif
#endif
  using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
  store(&result, static_cast<Wide>(x));
  return result;
}

// A factor or a decay that lies on the device.
__device__ inline double read_number(const void* data, Dtype dtype) {
  return dtype == Dtype::f64 ? *static_cast<const double*>(data) : *static_cast<const float*>(data);
}

}  // namespace mtk
