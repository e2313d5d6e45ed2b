// The pybind11 module `_C`: per op one function that checks its arguments, fills the op's struct, releases
// the GIL and calls the kernel of the tensors' device. Every check of the project is here, so that all
// backends refuse alike.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings.h"
#include "build_info.h"
#include "scale.h"
#include "tensor.h"

namespace mtk {
namespace {

void scale_(const py::object& data, const py::object& factor) {
  const Argument argument{"scale_", "data"}, by{"scale_", "factor"};
  const TensorView view = TensorView::of(data.ptr(), argument), number = TensorView::of(factor.ptr(), by);
  if (!view.is_float()) refuse(Refusal::type, argument, kFloatDtypes, view.attribute("dtype"));
  if (!view.dense())
    refuse(Refusal::value, argument, "fill its memory without gaps or overlaps", view.stride_text());
  if (number.numel() != 1 || !number.is_float() || number.dtype.bits < 32 || !number.same_device(view)) {
    refuse(Refusal::value, by, "be one float32 or float64 on the device of data",
           number.attribute("dtype") + " " + number.shape_text() + " on " + number.attribute("device"));
  }
  Scale args{};
  args.data = view.address();
  args.dtype = view.float_dtype();
  args.count = view.numel();
  args.factor = number.address();
  args.factor_dtype = number.float_dtype();
  launch(argument, view, args, scale_cpu, scale_cuda);
}

}  // namespace
}  // namespace mtk

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  using namespace py::literals;
  m.doc() = "Native kernels of mtkernels. The public functions are those of the package.";
  mtk::bind_ema(m);
  mtk::bind_slots(m);
  mtk::bind_losses(m);
  mtk::bind_targets(m);
  mtk::bind_augment(m);
  m.def("scale_", &mtk::scale_, "data"_a, "factor"_a);
  m.def("build_info", &mtk::build_info, "Flags of this build and features of this CPU.");
}
