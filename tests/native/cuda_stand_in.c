// Stands for the driver's library in tests: two cards, whose memory is ordinary memory. The
// environment says what fails: STAND_IN_FAILS names a function, STAND_IN_CARDS the number of cards.
// At its end it writes to STAND_IN_LOG what was not given back, and the copies of each way.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int held, contexts, depth, to_card, from_card;
static char* pinned;

static int fails(const char* name) {
  const char* named = getenv("STAND_IN_FAILS");
  return named != NULL && strcmp(named, name) == 0 ? 2 : 0;
}
#define MAY_FAIL(name) \
  if (fails(#name)) return fails(#name)

__attribute__((destructor)) static void report(void) {
  const char* path = getenv("STAND_IN_LOG");
  FILE* file = path == NULL ? NULL : fopen(path, "w");
  if (file == NULL) return;
  fprintf(file, "%d %d %d %d %d", held, contexts, depth, to_card, from_card);
  fclose(file);
}

int cuInit(unsigned flags) {
  MAY_FAIL(cuInit);
  return flags == 0 ? 0 : 1;
}
int cuGetErrorString(int code, const char** text) {
  *text = code == 2 ? "out of memory" : NULL;
  return code == 2 ? 0 : 1;
}
int cuDeviceGetCount(int* count) {
  MAY_FAIL(cuDeviceGetCount);
  const char* cards = getenv("STAND_IN_CARDS");
  *count = cards == NULL ? 2 : atoi(cards);
  return 0;
}
int cuDeviceGet(int* device, int index) {
  MAY_FAIL(cuDeviceGet);
  *device = 40 + index;
  return 0;
}
int cuDeviceGetName(char* name, int size, int device) {
  MAY_FAIL(cuDeviceGetName);
  snprintf(name, (size_t)size, "Card %d", device - 40);
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  MAY_FAIL(cuDevicePrimaryCtxRetain);
  contexts++;
  *context = (void*)(0x100000000L + device);
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
  contexts--;
  return device < 40;
}
int cuCtxPushCurrent_v2(void* context) {
  MAY_FAIL(cuCtxPushCurrent_v2);
  depth++;
  return (long)context <= 0x100000000L;  // a pointer that was cut to 32 bits
}
int cuCtxPopCurrent_v2(void** context) {
  *context = NULL;
  depth--;
  return 0;
}
int cuCtxSynchronize(void) {
  return depth > 0 ? 0 : 201;
}
int cuMemAlloc_v2(unsigned long long* address, size_t size) {
  MAY_FAIL(cuMemAlloc_v2);
  *address = (unsigned long long)(size_t)malloc(size);
  held++;
  return 0;
}
int cuMemFree_v2(unsigned long long address) {
  free((void*)(size_t)address);
  held--;
  return 0;
}
int cuMemHostAlloc(void** address, size_t size, unsigned flags) {
  MAY_FAIL(cuMemHostAlloc);
  *address = pinned = malloc(size);
  held++;
  return (int)flags;
}
int cuMemFreeHost(void* address) {
  free(address);
  held--;
  return address != pinned;
}
int cuMemcpyHtoD_v2(unsigned long long target, const void* source, size_t size) {
  MAY_FAIL(cuMemcpyHtoD_v2);
  to_card++;
  memcpy((void*)(size_t)target, source, size);
  return source != pinned;
}
int cuMemcpyDtoH_v2(void* target, unsigned long long source, size_t size) {
  MAY_FAIL(cuMemcpyDtoH_v2);
  from_card++;
  memcpy(target, (const void*)(size_t)source, size);
  return target != pinned;
}
