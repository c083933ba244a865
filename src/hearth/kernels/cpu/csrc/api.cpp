// The C boundary: exceptions become codes and a message of the calling thread.
#include <exception>
#include <new>
#include <string>

#include "model.h"

using hearth::Failure;
using hearth::Model;

struct hearth_model {
  explicit hearth_model(const hearth_model_desc& desc) : model(desc) {}
  Model model;
};

namespace {

thread_local std::string last_error;

template <class F>
int32_t guarded(F&& body) {
  try {
    body();
    return HEARTH_OK;
  } catch (const Failure& failure) {
    last_error = failure.message;
    return failure.code;
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
    return HEARTH_E_MEMORY;
  } catch (const std::exception& error) {
    last_error = error.what();
    return HEARTH_E_SYSTEM;
  }
}

}  // namespace

extern "C" {

int32_t hearth_abi_version(void) {
  return HEARTH_ABI_VERSION;
}

const char* hearth_last_error(void) {
  return last_error.c_str();
}

const char* hearth_isas(void) {
  return hearth::isas_of_this_machine();
}

int32_t hearth_model_create(const hearth_model_desc* desc, hearth_model** out) {
  return guarded([&] {
    if (!desc || !out || desc->abi_version != HEARTH_ABI_VERSION)
      throw Failure{HEARTH_E_ARGUMENT, "the library has another ABI version"};
    *out = new hearth_model(*desc);
  });
}

void hearth_model_destroy(hearth_model* model) {
  delete model;
}

int32_t hearth_model_bind(hearth_model* model, const int32_t* cpus) {
  return guarded([&] { model->model.bind(cpus); });
}

int32_t hearth_run(hearth_model* model, int32_t first, int32_t last, const hearth_plan* plan,
                   const hearth_result* result) {
  return guarded([&] { model->model.run(first, last, *plan, *result); });
}

int32_t hearth_read_buffer(hearth_model* model, int32_t buffer, int32_t rows, float* out) {
  return guarded([&] { model->model.read_buffer(buffer, rows, out); });
}

int32_t hearth_write_buffer(hearth_model* model, int32_t buffer, int32_t rows, const float* in) {
  return guarded([&] { model->model.write_buffer(buffer, rows, in); });
}
}
