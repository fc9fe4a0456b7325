/* A libnvidia-ml.so.1 without a GPU, for tests of what reads and sets real ones.
 *
 * All of it lives in one mapped file (BALLAST_FAKE_NVML), so that a test can turn knobs and read what was set while
 * other processes use the library, and so that "GPUs" outlive them. Behind each stands a small plant: power follows the
 * clock, the lock and the load; the limit throttles; the energy counter counts. It knows only the calls that Ballast
 * makes. Layouts of arguments are those of nvidia-ml-py; the state's layout is that of node.py beside this file.
 */
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <stdlib.h>

#define MOST_GPUS 16
#define MOST_ERRORS 32
#define MOST_XIDS 8
#define FOREVER 0xffffffffu

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7,
       DRIVER_NOT_LOADED = 9, TIMEOUT = 10, LOST = 15, MISMATCH = 18 };

typedef struct {
    char call[56];
    int32_t gpu; /* -1: every one */
    uint32_t code;
    uint32_t left; /* how often; FOREVER */
    uint32_t pad;
} Error;

typedef struct {
    char uuid[48];
    char name[48];
    double load;          /* 0 idle to 1 */
    double energy_j, energy_at_s;
    uint32_t lost, mig, mig_count, ignore_limit, ignore_clock, no_energy;
    uint32_t limit_mw, default_mw, least_mw, most_mw, bmc_mw;
    uint32_t lock_least, lock_most; /* 0: none */
    uint32_t sets;                  /* set calls that changed something */
    uint32_t reasons;               /* or-ed to those of the plant */
    uint32_t temperature_c, xid_count;
    uint64_t ecc;
    uint64_t xids[MOST_XIDS];
} Gpu;

typedef struct {
    uint32_t magic, gpus, driver, unprivileged;
    uint32_t clock_least, clock_most, clock_step, pad;
    char version[32];
    Error errors[MOST_ERRORS];
    Gpu gpu[MOST_GPUS];
} State;

typedef struct {
    uint32_t id, scope;
    int64_t time_us, latency_us;
    uint32_t type, ret;
    union { double d; uint32_t ui; unsigned long long ull; } value;
} Field;

typedef struct { void *device; unsigned long long type, data; uint32_t gi, ci; } Event;

static State *state;
static uint32_t driver_at_start; /* the driver that this process was loaded with; 0: none yet */

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int injected(const char *call, int gpu) {
    for (int i = 0; i < MOST_ERRORS && state->errors[i].call[0]; i++) {
        Error *e = &state->errors[i];
        if (e->left == 0 || (e->gpu >= 0 && e->gpu != gpu) || strcmp(e->call, call) != 0) continue;
        if (e->left != FOREVER) e->left--;
        return (int)e->code;
    }
    return OK;
}

static int usable(const char *call) {
    if (!state) return UNINITIALIZED;
    if (driver_at_start != state->driver) return MISMATCH;
    return injected(call, -1);
}

/* Handles are 1 + index; those of MIG instances 1000 + 16 * index + instance. */
static int of(const void *handle, Gpu **gpu, const char *call) {
    if (!state) return UNINITIALIZED;
    if (driver_at_start != state->driver) return MISMATCH;
    uintptr_t at = (uintptr_t)handle;
    uintptr_t index = at >= 1000 ? (at - 1000) / 16 : at - 1;
    if (at == 0 || index >= state->gpus) return INVALID;
    *gpu = &state->gpu[index];
    int code = injected(call, (int)index);
    if (code) return code;
    return (*gpu)->lost ? LOST : OK;
}

#define GPU(handle) Gpu *g; { int code = of(handle, &g, __func__); if (code) return code; }
#define PRIVILEGED() if (state->unprivileged) return NO_PERMISSION

static double watts(const Gpu *g, double mhz) {
    return 63.0 + g->load * 345.0 * pow(mhz / (double)state->clock_most, 1.13);
}

static uint32_t enforced_mw(const Gpu *g) {
    return g->bmc_mw && g->bmc_mw < g->limit_mw ? g->bmc_mw : g->limit_mw;
}

static uint32_t unthrottled_mhz(const Gpu *g) {
    uint32_t top = g->lock_most ? g->lock_most : state->clock_most;
    uint32_t idle = g->lock_least ? g->lock_least : state->clock_least;
    return g->load > 0.0 ? top : (idle < top ? idle : top);
}

static uint32_t mhz(const Gpu *g) {
    uint32_t f = unthrottled_mhz(g);
    while (f > state->clock_least && watts(g, f) * 1000.0 > enforced_mw(g)) f -= state->clock_step;
    return f;
}

static double power_w(const Gpu *g) { return watts(g, mhz(g)); }

static void count(Gpu *g) { /* before anything changes, and before the counter is read */
    double t = now_s();
    if (g->energy_at_s > 0.0 && t > g->energy_at_s) g->energy_j += power_w(g) * (t - g->energy_at_s);
    g->energy_at_s = t;
}

static unsigned long long reasons(const Gpu *g) {
    unsigned long long bits = g->reasons;
    if (g->load <= 0.0) bits |= 0x1;
    if (mhz(g) < unthrottled_mhz(g)) bits |= 0x4;
    return bits;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *path = getenv("BALLAST_FAKE_NVML");
    if (!path) return DRIVER_NOT_LOADED;
    if (!state) {
        int fd = open(path, O_RDWR);
        if (fd < 0) return DRIVER_NOT_LOADED;
        State *mapped = mmap(NULL, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (mapped == MAP_FAILED || mapped->magic != 0xba11a570u) return DRIVER_NOT_LOADED;
        state = mapped;
    }
    if (!driver_at_start) driver_at_start = state->driver;
    if (driver_at_start != state->driver) return MISMATCH;
    return injected(__func__, -1);
}

int nvmlShutdown(void) { if (state) munmap(state, sizeof(State)); state = NULL; return OK; }

int nvmlSystemGetDriverVersion(char *out, unsigned length) {
    int code = usable(__func__);
    if (code) return code;
    strncpy(out, state->version, length);
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count_out) {
    int code = usable(__func__);
    if (!code) *count_out = state->gpus;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    GPU((void *)(uintptr_t)(index + 1));
    *out = (void *)(uintptr_t)(index + 1);
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    int code = usable(__func__);
    if (code) return code;
    for (uint32_t i = 0; i < state->gpus; i++)
        if (strcmp(state->gpu[i].uuid, uuid) == 0) {
            *out = (void *)(uintptr_t)(i + 1);
            return state->gpu[i].lost ? LOST : OK;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned length) {
    GPU(handle);
    uintptr_t at = (uintptr_t)handle;
    if (at < 1000) {
        strncpy(out, g->uuid, length);
        return OK;
    }
    strncpy(out, "MIG-", length);
    strncat(out, g->uuid, length - 5);
    char tail[3] = {'/', (char)('0' + (at - 1000) % 16), 0};
    strncat(out, tail, length - strlen(out) - 1);
    return OK;
}

int nvmlDeviceGetName(void *handle, char *out, unsigned length) { GPU(handle); strncpy(out, g->name, length); return OK; }

int nvmlDeviceGetPowerUsage(void *handle, unsigned *out) { GPU(handle); *out = (unsigned)(power_w(g) * 1000.0); return OK; }

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *out) {
    GPU(handle);
    if (g->no_energy) return NOT_SUPPORTED;
    count(g);
    *out = (unsigned long long)(g->energy_j * 1000.0);
    return OK;
}

int nvmlDeviceGetFieldValues(void *handle, int number, Field *fields) {
    GPU(handle);
    count(g);
    for (int i = 0; i < number; i++) {
        Field *f = &fields[i];
        f->ret = OK;
        f->type = 1;
        f->time_us = (int64_t)(now_s() * 1e6);
        char call[32] = "field:000";
        call[6] = (char)('0' + f->id / 100 % 10), call[7] = (char)('0' + f->id / 10 % 10), call[8] = (char)('0' + f->id % 10);
        int code = injected(call, (int)(g - state->gpu));
        if (code) { f->ret = (uint32_t)code; continue; }
        switch (f->id) {
        case 185: case 186: f->value.ui = (uint32_t)(power_w(g) * 1000.0); break;
        case 187: f->value.ui = g->least_mw; break;
        case 188: f->value.ui = g->most_mw; break;
        case 189: f->value.ui = g->default_mw; break;
        case 190: f->value.ui = enforced_mw(g); break;
        case 192: f->value.ui = g->limit_mw; break;
        case 82: f->value.ui = g->temperature_c + 8; break;
        case 83:
            if (g->no_energy) { f->ret = NOT_SUPPORTED; break; }
            f->type = 3;
            f->value.ull = (unsigned long long)(g->energy_j * 1000.0);
            break;
        default: f->ret = NOT_SUPPORTED;
        }
    }
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *out) {
    GPU(handle);
    if (g->mig) return NOT_SUPPORTED;
    out[0] = (unsigned)(g->load * 100.0), out[1] = (unsigned)(g->load * 50.0);
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *out) {
    GPU(handle);
    out[0] = 80ull << 30, out[2] = 10ull << 30, out[1] = out[0] - out[2];
    return OK;
}

int nvmlDeviceGetClockInfo(void *handle, unsigned type, unsigned *out) {
    GPU(handle);
    *out = type == 2 ? 1593 : mhz(g);
    return OK;
}

int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *out) { (void)sensor; GPU(handle); *out = g->temperature_c; return OK; }

int nvmlDeviceGetTemperatureV(void *handle, int32_t *record) { GPU(handle); record[2] = (int32_t)g->temperature_c; return OK; }

int nvmlDeviceGetTotalEccErrors(void *handle, unsigned type, unsigned counter, unsigned long long *out) {
    (void)counter;
    GPU(handle);
    *out = type == 1 ? g->ecc : 0;
    return OK;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *out) { GPU(handle); *out = reasons(g); return OK; }

int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *out) { GPU(handle); *out = g->limit_mw; return OK; }

int nvmlDeviceGetPowerManagementDefaultLimit(void *handle, unsigned *out) { GPU(handle); *out = g->default_mw; return OK; }

int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *least, unsigned *most) {
    GPU(handle);
    *least = g->least_mw, *most = g->most_mw;
    return OK;
}

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *out) { GPU(handle); *out = enforced_mw(g); return OK; }

int nvmlDeviceSetPowerManagementLimit(void *handle, unsigned limit_mw) {
    GPU(handle);
    PRIVILEGED();
    if (limit_mw < g->least_mw || limit_mw > g->most_mw) return INVALID;
    count(g);
    if (!g->ignore_limit) g->limit_mw = limit_mw, g->sets++;
    return OK;
}

int nvmlDeviceSetGpuLockedClocks(void *handle, unsigned least, unsigned most) {
    GPU(handle);
    PRIVILEGED();
    if (least > most || most == 0) return INVALID;
    count(g);
    if (!g->ignore_clock) g->lock_least = least, g->lock_most = most, g->sets++;
    return OK;
}

int nvmlDeviceResetGpuLockedClocks(void *handle) {
    GPU(handle);
    PRIVILEGED();
    count(g);
    if (!g->ignore_clock) g->lock_least = g->lock_most = 0, g->sets++;
    return OK;
}

int nvmlDeviceGetSupportedMemoryClocks(void *handle, unsigned *number, unsigned *out) {
    GPU(handle);
    if (*number < 1) { *number = 1; return TOO_SMALL; }
    *number = 1, out[0] = 1593;
    return OK;
}

int nvmlDeviceGetSupportedGraphicsClocks(void *handle, unsigned memory, unsigned *number, unsigned *out) {
    (void)memory;
    GPU(handle);
    unsigned all = (state->clock_most - state->clock_least) / state->clock_step + 1;
    if (*number < all) { *number = all; return TOO_SMALL; }
    for (unsigned i = 0; i < all; i++) out[i] = state->clock_most - i * state->clock_step;
    *number = all;
    return OK;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) { GPU(handle); *current = *pending = g->mig; return OK; }

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *out) { GPU(handle); *out = g->mig ? 7 : 0; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **out) {
    GPU(handle);
    if (index >= g->mig_count) return NOT_FOUND;
    *out = (void *)(uintptr_t)(1000 + 16 * (g - state->gpu) + index);
    return OK;
}

int nvmlEventSetCreate(void **out) { *out = (void *)1; return usable(__func__); }

int nvmlEventSetFree(void *set) { (void)set; return OK; }

int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) { (void)types, (void)set; GPU(handle); return OK; }

int nvmlEventSetWait_v2(void *set, Event *event, unsigned timeout_ms) {
    (void)set, (void)timeout_ms;
    int code = usable(__func__);
    if (code) return code;
    for (uint32_t i = 0; i < state->gpus; i++) {
        Gpu *g = &state->gpu[i];
        if (!g->xid_count) continue;
        memset(event, 0, sizeof(Event));
        event->device = (void *)(uintptr_t)(i + 1);
        event->type = 0x8;
        event->data = g->xids[0];
        memmove(g->xids, g->xids + 1, sizeof(g->xids[0]) * (MOST_XIDS - 1));
        g->xid_count--;
        return OK;
    }
    return TIMEOUT;
}
