// Where modules hold their tensors: whether another tensor is there now than when they were listed.
#pragma once
#include <pybind11/pybind11.h>

namespace mtk {

void bind_slots(pybind11::module_& m);

}  // namespace mtk
