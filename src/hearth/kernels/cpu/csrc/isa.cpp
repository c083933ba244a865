// Which instruction sets this build has, which of them this processor runs, and which one is taken.
//
// Another one (AVX-VNNI without AVX-512, AMX, NEON) is a row of the table here, an isa_*.cpp with
// its compiler flags in CMakeLists.txt, and a vector layer (vec_*.h), or kernels of its own where
// its registers are no vectors. Nothing else knows how many there are.
#include <cstring>
#include <string>

#include "model.h"

namespace hearth {
namespace {

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool (*runs_here)();
};

bool always() {
  return true;
}

#if !defined(HEARTH_ONLY_GENERIC)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

// The best one first.
const Isa kIsas[] = {
#if !defined(HEARTH_ONLY_GENERIC)
    {"avx512_bf16", &kKernelsAvx512Bf16, has_avx512_bf16},
    {"avx512", &kKernelsAvx512, has_avx512},
    {"avx2", &kKernelsAvx2, has_avx2},
#endif
    {"generic", &kKernelsGeneric, always},
};

std::string joined_names() {
  std::string names;
  for (const Isa& isa : kIsas) {
    if (!isa.runs_here()) continue;
    if (!names.empty()) names.append(" ");
    names.append(isa.name);
  }
  return names;
}

}  // namespace

const char* isas_of_this_machine() {
  static const std::string names = joined_names();
  return names.c_str();
}

const Kernels& choose_kernels(const char* isa) {
  bool any = !isa || !*isa || !std::strcmp(isa, "auto");
  for (const Isa& candidate : kIsas)
    if ((any || !std::strcmp(isa, candidate.name)) && candidate.runs_here())
      return *candidate.kernels;
  throw Failure{HEARTH_E_ARGUMENT,
                "instruction set '" + std::string(isa) +
                    "' cannot run here; those that can: " + isas_of_this_machine()};
}

}  // namespace hearth
