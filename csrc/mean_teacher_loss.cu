#include "mean_teacher_loss.h"
#include <stdexcept>
namespace mtk { void mean_teacher_loss_cuda(const MeanTeacherLoss&) { throw std::runtime_error("stub"); } }
