// Reading tensors and refusing arguments.
#include "tensor.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <vector>

namespace mtk {
namespace {

constexpr uint32_t kDlpackMajor = 1;

struct Torch {
  PyTypeObject* tensor_type;
  const DLPackExchangeAPI* api;
};

// Looked up once, at the first call: importing this module needs no torch.
const Torch& torch() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> storage;
  return storage
      .call_once_and_store_result([] {
        py::object tensor_type = py::module_::import("torch").attr("Tensor");
        py::object capsule = py::getattr(tensor_type, "__dlpack_c_exchange_api__", py::none());
        void* table =
            capsule.is_none() ? nullptr : PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
        if (!table)
          throw py::import_error("mtkernels: torch must offer DLPack's C exchange API (torch >= 2.10)");
        auto* header = static_cast<DLPackExchangeAPIHeader*>(table);
        while (header && header->version.major != kDlpackMajor) header = header->prev_api;
        auto* api = reinterpret_cast<const DLPackExchangeAPI*>(header);
        if (!api || !api->dltensor_from_py_object_no_sync) {
          throw py::import_error("mtkernels: torch's DLPack exchange API must have a table of version 1");
        }
        return Torch{reinterpret_cast<PyTypeObject*>(tensor_type.release().ptr()), api};
      })
      .get_stored();
}

std::string type_name(PyObject* object) { return Py_TYPE(object)->tp_name; }

bool flag(PyObject* tensor, const char* method) {
  return py::cast<bool>(py::reinterpret_borrow<py::object>(tensor).attr(method)());
}

// A neg view of real numbers is the imaginary part of a conj view: all its strides are even.
bool may_be_neg(const TensorView& view) {
  for (int32_t i = 0; i < view.ndim; ++i) {
    if (view.shape[i] > 1 && view.strides[i] % 2 != 0) return false;
  }
  return view.dtype.code != kDLBool;
}

// A view with conj or neg bit shows its raw memory through DLPack. Asked only where such a view can be.
void refuse_lazy_views(const TensorView& view, const Argument& argument) {
  if (view.is_complex() && flag(view.object, "is_conj")) {
    refuse(Refusal::type, argument, "hold its values in memory (use resolve_conj())", "a lazy conj view");
  }
  if ((view.is_complex() || may_be_neg(view)) && flag(view.object, "is_neg")) {
    refuse(Refusal::type, argument, "hold its values in memory (use resolve_neg())", "a lazy neg view");
  }
}

std::string list_text(const int64_t* values, int32_t count) {
  std::string text = "[";
  for (int32_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

}  // namespace

std::string Argument::text() const {
  std::string text = std::string(op) + ": " + name;
  if (index < 0) return text;
  if (outer >= 0) text += "[" + std::to_string(outer) + "]";
  text += "[" + std::to_string(index) + "]";
  if (names) {
    text += " ('" +
            std::string(py::str(py::reinterpret_borrow<py::list>(names)[static_cast<size_t>(index)])) + "')";
  }
  return text;
}

void refuse(Refusal kind, const Argument& argument, const std::string& must, const std::string& is) {
  PyObject* type = kind == Refusal::type    ? PyExc_TypeError
                   : kind == Refusal::value ? PyExc_ValueError
                                            : PyExc_NotImplementedError;
  PyErr_SetString(type, (argument.text() + " must " + must + ", got " + is).c_str());
  throw py::error_already_set();
}

bool is_tensor(PyObject* object) { return PyObject_TypeCheck(object, torch().tensor_type); }

HeldTensor::HeldTensor(PyObject* tensor) : managed_(nullptr) {
  const auto export_tensor = torch().api->managed_tensor_from_py_object_no_sync;
  if (export_tensor && export_tensor(tensor, &managed_) != 0) {
    PyErr_Clear();  // reading it is slower then, no more
    managed_ = nullptr;
  }
}

HeldTensor::~HeldTensor() {
  if (managed_ && managed_->deleter) managed_->deleter(managed_);
}

TensorView TensorView::of(PyObject* object, const Argument& argument) {
  if (!is_tensor(object)) refuse(Refusal::type, argument, "be a torch.Tensor", type_name(object));
  TensorView view;
  if (!view.read(object)) {  // torch's own text is a C++ backtrace
    refuse(Refusal::type, argument, "be a dense tensor in memory",
           "layout " + view.attribute("layout") + ", dtype " + view.attribute("dtype") + " on " +
               view.attribute("device"));
  }
  if (!view.data && view.numel() > 0) {
    refuse(Refusal::type, argument, "hold its data in this process (a DTensor: pass its to_local())",
           type_name(object));
  }
  refuse_lazy_views(view, argument);
  return view;
}

bool TensorView::read(PyObject* tensor) {
  object = tensor;
  if (torch().api->dltensor_from_py_object_no_sync(tensor, this) == 0) return true;
  PyErr_Clear();
  return false;
}

int64_t TensorView::numel() const {
  int64_t count = 1;
  for (int32_t i = 0; i < ndim; ++i) count *= shape[i];
  return count;
}

bool TensorView::contiguous() const {
  int64_t expected = 1;
  for (int32_t i = ndim - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expected) return numel() == 0;
    expected *= shape[i];
  }
  return true;
}

bool TensorView::dense() const {
  if (contiguous()) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int32_t i = 0; i < ndim; ++i) {
    if (shape[i] != 1) dims.emplace_back(strides[i], shape[i]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool TensorView::injective() const {
  if (numel() == 0) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int32_t i = 0; i < ndim; ++i) {
    if (shape[i] != 1) dims.emplace_back(strides[i], shape[i]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;  // from the first element to the last of the dims so far
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return false;
    reach += stride * (size - 1);
  }
  return true;
}

bool TensorView::is_float() const {
  return dtype.lanes == 1 &&
         ((dtype.code == kDLFloat && (dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64)) ||
          (dtype.code == kDLBfloat && dtype.bits == 16));
}

bool TensorView::is_index() const {
  return dtype.code == kDLInt && (dtype.bits == 64 || dtype.bits == 32) && dtype.lanes == 1;
}

int64_t TensorView::integer_at(int64_t offset) const {
  return dtype.bits == 64 ? reinterpret_cast<const int64_t*>(address())[offset]
                          : reinterpret_cast<const int32_t*>(address())[offset];
}

Dtype TensorView::float_dtype() const {
  if (dtype.code == kDLBfloat) return Dtype::bf16;
  const int bits = is_complex() ? dtype.bits / 2 : dtype.bits;
  return bits == 64 ? Dtype::f64 : bits == 32 ? Dtype::f32 : Dtype::f16;
}

bool TensorView::same_shape(const TensorView& other) const {
  if (ndim != other.ndim) return false;
  for (int32_t i = 0; i < ndim; ++i) {
    if (shape[i] != other.shape[i]) return false;
  }
  return true;
}

bool TensorView::same_strides(const TensorView& other) const {
  for (int32_t i = 0; i < ndim; ++i) {
    if (shape[i] != 1 && strides[i] != other.strides[i]) return false;
  }
  return true;
}

bool TensorView::same_device(const TensorView& other) const {
  if (on_cpu() && other.on_cpu()) return true;
  return device.device_type == other.device.device_type && device.device_id == other.device.device_id;
}

bool TensorView::same_dtype(const TensorView& other) const {
  return dtype.code == other.dtype.code && dtype.bits == other.dtype.bits && dtype.lanes == other.dtype.lanes;
}

std::string TensorView::attribute(const char* name) const {
  return py::str(py::reinterpret_borrow<py::object>(object).attr(name));
}

std::string TensorView::shape_text() const { return list_text(shape, ndim); }
std::string TensorView::stride_text() const { return list_text(strides, ndim); }

TensorView read_numbers(const py::object& tensor, const Argument& argument, const Numbers& must,
                        const TensorView& other) {
  const TensorView view = TensorView::of(tensor.ptr(), argument);
  if (view.dtype.code != must.code || view.dtype.bits != must.bits)
    refuse(Refusal::type, argument, std::string("be ") + must.dtype, view.attribute("dtype"));
  if (view.numel() != must.count || (view.numel() > 1 && (view.ndim != 1 || !view.dense()))) {
    refuse(
        Refusal::value, argument,
        must.count == 1 ? "hold one number" : "be a vector of " + std::to_string(must.count) + ", contiguous",
        "shape " + view.shape_text() + ", strides " + view.stride_text());
  }
  if (!view.same_device(other)) {
    refuse(Refusal::value, argument,
           std::string("be on the device of ") + must.beside + " (" + other.attribute("device") + ")",
           view.attribute("device"));
  }
  return view;
}

void* current_stream(DLDevice device) {
  void* stream = nullptr;
  if (device.device_type != kDLCPU &&
      torch().api->current_work_stream(device.device_type, device.device_id, &stream) != 0) {
    throw py::error_already_set();
  }
  return stream;
}

}  // namespace mtk
