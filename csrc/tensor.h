// TensorView: a torch tensor seen through DLPack's exchange API, and the one place where arguments are
// refused. A message has four parts: op, argument, what it must be, what it is.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "dlpack.h"
#include "dtype.h"

namespace mtk {

namespace py = pybind11;

// An argument as messages name it: `op: name`, `op: name[3]`, or `op: name[3] ('conv1.weight')` where names
// are known; `op: name[1][3]` where it is a list of lists.
struct Argument {
  const char* op;
  const char* name;
  Py_ssize_t index = -1;
  PyObject* names = nullptr;  // list of str, or null
  Py_ssize_t outer = -1;

  std::string text() const;
};

constexpr const char* kFloatDtypes = "be float16, bfloat16, float32 or float64";

enum class Refusal { type, value, not_implemented };

// Raises TypeError, ValueError or NotImplementedError: "<argument> must <must>, got <is>".
[[noreturn]] void refuse(Refusal kind, const Argument& argument, const std::string& must,
                         const std::string& is);

struct TensorView : DLTensor {
  PyObject* object;  // borrowed

  // Refuses what is not a torch tensor, what has no memory here (fake, meta, DTensor, sparse), and views
  // whose memory differs from their values (conj, neg).
  static TensorView of(PyObject* object, const Argument& argument);

  // Fills this view again from the same tensor, unchecked. False where torch refuses, or has no memory to
  // show.
  bool read(PyObject* tensor);

  char* address() const { return static_cast<char*>(data) + byte_offset; }
  int64_t numel() const;
  int64_t bytes() const { return numel() * dtype.bits / 8 * dtype.lanes; }
  bool dense() const;       // its elements fill one stretch of memory, in any order of the dims
  bool injective() const;   // no two of its elements lie at one place
  bool contiguous() const;  // dense, the last dim fastest
  bool is_float() const;    // one of the four dtypes of dtype.h
  bool is_index() const;    // int64 or int32
  int64_t integer_at(int64_t offset) const;  // of is_index() on the CPU, `offset` elements from the first
  bool is_complex() const { return dtype.code == kDLComplex; }
  Dtype float_dtype() const;  // of is_float(); of the parts where complex
  bool on_cpu() const { return device.device_type == kDLCPU || device.device_type == kDLCUDAHost; }
  bool same_shape(const TensorView& other) const;
  bool same_strides(const TensorView& other) const;  // dims of size 1 aside
  bool same_device(const TensorView& other) const;
  bool same_dtype(const TensorView& other) const;

  std::string attribute(const char* name) const;  // str(tensor.<name>), for messages
  std::string shape_text() const;
  std::string stride_text() const;
};

bool is_tensor(PyObject* object);

// What a tensor of a few numbers must be, such as a flag or a counter.
struct Numbers {
  uint8_t code, bits;  // DLPack's
  const char* dtype;   // their name
  int64_t count;
  const char* beside;  // name of the tensors whose device it must be on
};

TensorView read_numbers(const py::object& tensor, const Argument& argument, const Numbers& must,
                        const TensorView& other);

// A reference to the tensor itself rather than to its Python object. While somebody holds one, reading the
// tensor costs half: torch need not take the GIL to hand a first one out.
class HeldTensor {
 public:
  explicit HeldTensor(PyObject* tensor);
  ~HeldTensor();
  HeldTensor(HeldTensor&& other) noexcept : managed_(other.managed_) { other.managed_ = nullptr; }
  HeldTensor& operator=(HeldTensor&&) = delete;

 private:
  DLManagedTensorVersioned* managed_;  // null where torch gives none
};

// The stream on which the caller's work on this device is queued.
void* current_stream(DLDevice device);

}  // namespace mtk
