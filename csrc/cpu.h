// What the CPU kernels share: clones of a function for each instruction set, and when threads are worth their
// start.
#pragma once
#include <cstdint>

#include <omp.h>

// One body, compiled three times; the loader picks by the machine's CPU. A macro, because no template can
// carry an attribute to a function. An OpenMP region inside would not be cloned: keep the parallel loop
// outside. Not under AddressSanitizer: the loader picks before its runtime has started.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(__SANITIZE_ADDRESS__)
#define MTK_CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MTK_CPU_CLONES
#endif

namespace mtk {

// Threads for `work` units when fewer than `grain` of them do not pay for a thread.
inline int threads_for(int64_t work, int64_t grain) {
  const int64_t wanted = work / grain;
  const int64_t most = omp_in_parallel() ? 1 : omp_get_max_threads();
  return static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

}  // namespace mtk
