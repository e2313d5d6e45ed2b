// Host: how a launch shares rows of logits among threads. A row belongs to one thread (rows that lie side by
// side, as in NCHW), to some lanes of a warp, to a block, or to a cluster of blocks.
#pragma once
#include <tuple>

#include "consistency_row.cuh"

namespace mtk {

constexpr int64_t kFewClasses =
    32;  // one thread may hold them; in packs, head and tail would be most of the row

struct Sharing {
  int group;     // threads of a row, a power of two; above a warp, all threads of its blocks
  bool cached;   // in shared memory
  double scale;  // Consistency::row_scale()
  Scratch scratch;
};

inline int64_t power_of_two_from(int64_t x) {
  int64_t power = 1;
  while (power < x) power *= 2;
  return power;
}

// Whether packs of n classes start at the same classes in every operand, in every row.
template <class Acc, int kSides>
bool in_phase(const Logits<Acc, kSides>& logits, int64_t n) {
  const auto phase = [n](const Operand& operand) {
    const uint64_t elements =
        reinterpret_cast<uint64_t>(operand.data) / static_cast<uint64_t>(size_of(operand.dtype));
    return static_cast<int64_t>(elements) % n;
  };
  const Operand& first = logits.sides[0];
  const auto fits = [&](const Operand& operand) {
    if (!operand.data) return true;
    if (operand.class_stride != 1 || phase(operand) != phase(first)) return false;
    for (int dim = 0; dim < kMaxRowDims; ++dim) {
      if (logits.row_sizes[dim] > 1 && (operand.row_strides[dim] - first.row_strides[dim]) % n != 0)
        return false;
    }
    return true;
  };
  for (int s = 0; s < kSides; ++s) {
    if (!fits(logits.sides[s]) || !fits(logits.gradients[s])) return false;
  }
  return true;
}

// How many clusters of this shape are resident at once on the current device; 0: it has none, or the kernel
// was compiled for an architecture without.
template <class... Params>
int64_t resident_clusters(const char* op, void (*kernel)(Params...), const LaunchShape& shape, int device) {
  constexpr int kFirstArch = 90;
  using Key = std::tuple<const void*, int, int64_t, int>;
  static std::mutex mutex;
  static std::map<Key, int64_t> known;
  const void* const function = reinterpret_cast<const void*>(kernel);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [found, is_new] = known.insert({Key{function, device, shape.shared, shape.cluster}, 0});
  if (!is_new) return found->second;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, function), op);
  if (attributes.ptxVersion < kFirstArch) return 0;
  allow(op, kernel, shape);
  cudaLaunchAttribute attribute{};
  const cudaLaunchConfig_t config = launch_config(shape, attribute);
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
    cudaGetLastError();  // a device that cannot run so large a cluster says so with an error
    clusters = 0;
  }
  return found->second = clusters;
}

// kHeader: bytes of shared memory before the cache. kCached, kStreaming: the kernel, either way.
template <class F, int kSides, int kHeader>
class SharingChoice {
 public:
  SharingChoice(const Logits<typename F::Acc, kSides>& logits, const DeviceLimits& limits, int device,
                const char* op)
      : logits_(logits), limits_(limits), device_(device), op_(op), packs_(ceil_div(logits.classes, F::N)) {}

  template <class Kernel>
  Sharing choose(Kernel* cached_kernel, Kernel* streaming_kernel, LaunchShape& shape) const {
    const bool thread_per_row = has_thread_per_row();
    int64_t group = thread_per_row ? 1 : threads_of_row();
    shape.threads = static_cast<int>(group <= kWarp ? kSmall : group);
    shape.shared = bytes(group, shape.threads);
    if (group == kMaxThreads && limits_.major >= 9) widen(cached_kernel, shape);
    const bool cached = shape.shared <= (thread_per_row ? std::min<int64_t>(kBeside, limits_.shared_per_block)
                                                        : limits_.shared_per_block);
    if (!cached) return streamed(streaming_kernel, shape);
    shape.blocks = blocks(cached_kernel, group, shape);
    return {static_cast<int>(group * shape.cluster), true, 1, {nullptr, nullptr, nullptr}};
  }

  // The same for a kernel that caches nothing.
  template <class Kernel>
  Sharing streamed(Kernel* kernel, LaunchShape& shape) const {
    const int64_t group = has_thread_per_row() ? 1 : threads_of_row();
    shape.threads = static_cast<int>(group <= kWarp ? kSmall : group);
    shape.shared = kHeader;
    shape.cluster = 1;
    if (group == kMaxThreads && limits_.major >= 9) spread(kernel, shape);
    shape.blocks = blocks(kernel, group, shape);
    return {static_cast<int>(group * shape.cluster), false, 1, {nullptr, nullptr, nullptr}};
  }

 private:
  static constexpr int64_t kItems = 4;    // packs of a thread, where there are rows enough to fill the device
  static constexpr int64_t kFull = 1024;  // threads that fill a multiprocessor
  static constexpr int64_t kSmall = 128;  // threads of a block of several rows
  static constexpr int64_t kSystem = 1024;       // bytes of a block's shared memory that the system takes
  static constexpr int64_t kBeside = 64 * 1024;  // bytes of a cache that leaves room for other blocks
  static constexpr int64_t kItem = kSides * F::N * static_cast<int64_t>(sizeof(typename F::Acc));  // bytes
  const Logits<typename F::Acc, kSides>& logits_;
  const DeviceLimits limits_;
  const int device_;
  const char* const op_;
  const int64_t packs_;

  int64_t bytes(int64_t group, int64_t threads) const {
    return kHeader + ceil_div(packs_, group) * kItem * threads;
  }

  bool has_thread_per_row() const {
    bool strided = false;
    for (const Operand& side : logits_.sides) strided |= side.class_stride != 1;
    return F::N == 1 && ((strided && logits_.rows >= limits_.sms * kWarp) ||
                         (logits_.classes <= kFewClasses && logits_.rows >= limits_.sms * kFull));
  }

  int64_t threads_of_row() const {
    const int64_t most = std::min<int64_t>(power_of_two_from(packs_), kMaxThreads);
    int64_t group = std::min(power_of_two_from(ceil_div(packs_, kItems)), most);
    while (group < most && group * logits_.rows < limits_.sms * kFull) group *= 2;
    return std::max<int64_t>(group, 2 * F::N);  // room for the edge: 2 (N - 1) classes
  }

  // The fewest blocks of a cluster that leave room for others beside each, so that one loads while another
  // computes; or that fit at all; more where rows are too few for the device.
  template <class Kernel>
  void widen(Kernel* kernel, LaunchShape& shape) const {
    const int64_t comfortable = limits_.shared_per_sm / F::kBlocksPerSm - kSystem;
    for (const int64_t most :
         {std::min<int64_t>(comfortable, limits_.shared_per_block), int64_t{limits_.shared_per_block}}) {
      for (int cluster = 1; cluster <= kMaxCluster; cluster *= 2) {
        const bool more = cluster < kMaxCluster / 2 && packs_ >= 2 * cluster * kMaxThreads &&
                          logits_.rows * cluster < limits_.sms;
        const int64_t shared = bytes(cluster * kMaxThreads, kMaxThreads);
        if (shared > most ||
            (more && can(kernel, shape, 2 * cluster, bytes(2 * cluster * kMaxThreads, kMaxThreads))))
          continue;
        if (cluster > 1 && !can(kernel, shape, cluster, shared)) continue;
        shape.cluster = cluster, shape.shared = shared;
        return;
      }
    }
  }

  // A streamed row, where there are few.
  template <class Kernel>
  void spread(Kernel* kernel, LaunchShape& shape) const {
    while (shape.cluster < kMaxCluster / 2 && logits_.rows * shape.cluster < limits_.sms &&
           can(kernel, shape, 2 * shape.cluster, kHeader)) {
      shape.cluster *= 2;
    }
  }

  template <class Kernel>
  bool can(Kernel* kernel, LaunchShape shape, int cluster, int64_t shared) const {
    shape.cluster = cluster, shape.shared = shared, shape.blocks = cluster;
    return resident_clusters(op_, kernel, shape, device_) > 0;
  }

  template <class Kernel>
  int64_t blocks(Kernel* kernel, int64_t group, LaunchShape shape) const {
    shape.blocks = shape.cluster;
    if (shape.cluster > 1)
      return shape.cluster * std::min({logits_.rows, resident_clusters(op_, kernel, shape, device_),
                                       int64_t{kMaxPartials} / shape.cluster});
    const int64_t by_shared = limits_.shared_per_sm / (shape.shared + kSystem);
    const int64_t resident = std::max<int64_t>(1, std::min<int64_t>(2048 / shape.threads, by_shared));
    return std::min(
        {ceil_div(logits_.rows, shape.threads / group), limits_.sms * resident, int64_t{kMaxPartials}});
  }
};

}  // namespace mtk
