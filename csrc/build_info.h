// What this build holds and what this CPU offers: the first lines of a bug report.
#pragma once
#include <pybind11/pybind11.h>

namespace mtk {

// {"compiler": str, "cuda": version or None, "cuda_archs": [str], "cpu": clone in use, "threads": int}
pybind11::dict build_info();

}  // namespace mtk
