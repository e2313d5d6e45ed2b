// Read by `python -m mtkernels`.
#include "build_info.h"

#include <omp.h>

#include <string>

namespace mtk {
namespace {

namespace py = pybind11;

// The clone that the loader picked (cpu.h), by the same questions that it asks.
const char* instruction_set() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "baseline";
}

}  // namespace

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = __VERSION__;  // names itself
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
#if defined(MTK_CUDA)
  info["cuda"] = MTK_CUDA_VERSION;
  info["cuda_archs"] = py::str(MTK_CUDA_ARCHS).attr("split")(";");
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = py::list();
#endif
  info["cpu"] = instruction_set();
  info["threads"] = omp_get_max_threads();
  return info;
}

}  // namespace mtk
