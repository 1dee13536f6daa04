// A GPU's driver that does nothing but note what it is asked to do, and fail where it is told to.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { MAJOR = 75, MINOR = 76 };
static char noted[1 << 16];
static const char *failing = "";
static int code, depth;
static void *launched[16];

void fail(const char *name, int with) { failing = name; code = with; }
const char *notes(void) { return noted; }
void forget(void) { noted[0] = 0; }
int64_t argument(int which) { return *(int64_t *)launched[which]; }

static int note(const char *name) {
    snprintf(noted + strlen(noted), sizeof noted - strlen(noted), "%s;", name);
    return strcmp(name, failing) ? 0 : code;
}

int cuInit(unsigned flags) { return note("cuInit"); }
int cuDeviceGet(int *device, int number) { *device = 40 + number; return note("cuDeviceGet"); }
int cuDeviceGetAttribute(int *value, int name, int device) { *value = name == MAJOR ? 9 : 0; return device < 40; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(0x1000000000 + device); // which 32 bits do not hold
    return note("cuDevicePrimaryCtxRetain");
}
int cuCtxPushCurrent_v2(void *context) {
    char name[64];
    snprintf(name, sizeof name, "push %lx", (unsigned long)context);
    ++depth;
    return note(name);
}
int cuCtxPopCurrent_v2(void **context) { --depth; return note("pop"); }
int cuModuleLoadData(void **module, const void *image) {
    *module = (void *)0x2000000000;
    return note(memcmp(image, "\177ELF", 4) ? "load PTX" : "load ELF");
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)(0x3000000000 + strlen(name));
    return module != (void *)0x2000000000 || note(name);
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    char name[160];
    snprintf(name, sizeof name, "%lx grid %u %u %u block %u %u %u shared %u stream %lx depth %d", (unsigned long)function,
             x, y, z, threads, ty, tz, shared, (unsigned long)stream, depth);
    memcpy(launched, arguments, 2 * sizeof *arguments);
    return extra ? 1 : note(name) ? code : strcmp(failing, "launch") ? 0 : code;
}
int cuGetErrorString(int error, const char **text) {
    *text = error == 719 ? "unspecified launch failure" : error == 218 ? "a PTX JIT compilation failed" : 0;
    return !*text;
}
