/* A GPU that gives out addresses and does nothing else, for tests/gpu/dry_run.py.

   Loaded before CUDA's libraries, its functions replace those of the runtime, the driver, cuBLAS and NCCL. Here are only those
   that must answer something; dry_run.py generates the others, which return 0, success. Memory is address space: little of it is
   ever written, since no kernel runs and no large copy is made. */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

enum { DEVICE, HOST };

static const size_t TOTAL = 85031714816;   /* bytes of an H100 80GB */
static const size_t CONTEXT = 520ull << 20; /* bytes of them that a process's CUDA context takes, about */
static const size_t ARENA = 1ull << 40;
static const size_t PAGE = 4096;
static const size_t COPIED = 4096; /* Sums and flags, on which Python decides, are copied; tokens and weights are not. */

/* Memory: an address tells whether it is the device's, and the page before it holds its size. No address is given out twice. */

static char *arenas[2];
static size_t taken[2], used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static cudaError_t take(int kind, size_t size, void **pointer) {
    pthread_mutex_lock(&lock);
    if (!arenas[kind]) {
        arenas[kind] = mmap(0, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        madvise(arenas[kind], ARENA, MADV_NOHUGEPAGE); /* or each size would take 2 MiB */
    }
    size_t whole = PAGE + (size + PAGE - 1) / PAGE * PAGE;
    int fits = taken[kind] + whole <= ARENA && (kind == HOST || used + size + CONTEXT <= TOTAL);
    if (fits) {
        *(size_t *)(arenas[kind] + taken[kind]) = size;
        *pointer = arenas[kind] + taken[kind] + PAGE;
        taken[kind] += whole;
        used += kind == DEVICE ? size : 0;
    }
    pthread_mutex_unlock(&lock);
    return fits ? cudaSuccess : cudaErrorMemoryAllocation;
}

static int is_in(int kind, const void *pointer) {
    return arenas[kind] && (char *)pointer >= arenas[kind] && (char *)pointer < arenas[kind] + ARENA;
}

cudaError_t cudaMalloc(void **pointer, size_t size) { return take(DEVICE, size, pointer); }
cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) { return take(HOST, size, pointer); }

cudaError_t cudaFree(void *pointer) {
    pthread_mutex_lock(&lock);
    used -= pointer ? *(size_t *)((char *)pointer - PAGE) : 0;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = TOTAL - CONTEXT - used, *total = TOTAL;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    memset(found, 0, sizeof *found);
    found->type = is_in(DEVICE, pointer) ? cudaMemoryTypeDevice
                  : is_in(HOST, pointer) ? cudaMemoryTypeHost
                                         : cudaMemoryTypeUnregistered;
    found->devicePointer = found->hostPointer = (void *)pointer;
    return cudaSuccess;
}

/* Waits: a caller's function hears of each. */

static void (*at_wait)(void);
void call_at_waits(void (*function)(void)) { at_wait = function; }

static cudaError_t wait(void) {
    if (at_wait) at_wait();
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait(); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait(); }
cudaError_t cudaDeviceSynchronize(void) { return wait(); }

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind != cudaMemcpyDeviceToDevice && size <= COPIED) memcpy(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    cudaMemcpyAsync(to, from, size, kind, 0);
    return wait();
}

/* The device: one H100, as torch, Inductor and Triton ask about it. */

#define H100                                                                                                              \
    (struct cudaDeviceProp) {                                                                                             \
        .name = "NVIDIA H100 80GB HBM3", .totalGlobalMem = TOTAL, .major = 9, .multiProcessorCount = 132, .warpSize = 32, \
        .maxThreadsPerBlock = 1024, .maxThreadsPerMultiProcessor = 2048, .maxThreadsDim = {1024, 1024, 64},               \
        .maxGridSize = {2147483647, 65535, 65535}, .regsPerBlock = 65536, .regsPerMultiprocessor = 65536,                 \
        .sharedMemPerBlock = 49152, .sharedMemPerBlockOptin = 232448, .sharedMemPerMultiprocessor = 233472,               \
        .l2CacheSize = 52428800, .memoryBusWidth = 5120                                                                   \
    }
#define KERNEL \
    (struct cudaFuncAttributes) { .binaryVersion = 90, .ptxVersion = 90, .maxThreadsPerBlock = 1024, .numRegs = 32 }

static int attribute(int which) { /* the driver has the same numbers for them */
    switch (which) {
        case cudaDevAttrComputeCapabilityMajor: return H100.major;
        case cudaDevAttrMultiProcessorCount: return H100.multiProcessorCount;
        case cudaDevAttrWarpSize: return H100.warpSize;
        case cudaDevAttrMaxThreadsPerBlock: return H100.maxThreadsPerBlock;
        case cudaDevAttrMaxThreadsPerMultiProcessor: return H100.maxThreadsPerMultiProcessor;
        case cudaDevAttrMaxRegistersPerBlock: return H100.regsPerBlock;
        case cudaDevAttrMaxSharedMemoryPerBlock: return H100.sharedMemPerBlock;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: return H100.sharedMemPerBlockOptin;
        case cudaDevAttrL2CacheSize: return H100.l2CacheSize;
        case cudaDevAttrClockRate: return 1980000;
        case cudaDevAttrMemoryClockRate: return 2619000;
        case cudaDevAttrGlobalMemoryBusWidth: return H100.memoryBusWidth;
        case cudaDevAttrMaxGridDimX: return H100.maxGridSize[0];
        case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return H100.maxGridSize[1];
        default: return 0;
    }
}

/* Answers of one value each. */

#define ANSWER(status, name, value, ...) \
    status name(__VA_ARGS__) { return *result = (value), (status)0; }
#define NEW (void *)(made += 16) /* streams and events differ from one another and from 0 */
static size_t made;

ANSWER(cudaError_t, cudaGetDeviceCount, 1, int *result)
ANSWER(cudaError_t, cudaGetDevice, 0, int *result)
ANSWER(cudaError_t, cudaDriverGetVersion, CUDART_VERSION, int *result)
ANSWER(cudaError_t, cudaRuntimeGetVersion, CUDART_VERSION, int *result)
ANSWER(cudaError_t, cudaGetDeviceProperties, H100, struct cudaDeviceProp *result, int device)
ANSWER(cudaError_t, cudaDeviceGetAttribute, attribute(which), int *result, enum cudaDeviceAttr which, int device)
ANSWER(cudaError_t, cudaDeviceCanAccessPeer, 0, int *result, int device, int peer)
ANSWER(cudaError_t, cudaDeviceGetStreamPriorityRange, *highest = 0, int *result, int *highest)
ANSWER(cudaError_t, cudaStreamCreateWithPriority, NEW, cudaStream_t *result, unsigned flags, int priority)
ANSWER(cudaError_t, cudaStreamIsCapturing, 0, cudaStream_t stream, enum cudaStreamCaptureStatus *result)
ANSWER(cudaError_t, cudaEventCreateWithFlags, NEW, cudaEvent_t *result, unsigned flags)
ANSWER(cudaError_t, cudaFuncGetAttributes, KERNEL, struct cudaFuncAttributes *result, const void *function)
ANSWER(cudaError_t, cudaOccupancyMaxActiveBlocksPerMultiprocessor, 2, int *result, const void *function, int threads,
       size_t shared)
ANSWER(cudaError_t, cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, 2, int *result, const void *function, int threads,
       size_t shared, unsigned flags)
ANSWER(cudaError_t, cudaEventElapsedTime, 1, float *result, cudaEvent_t from, cudaEvent_t to)

ANSWER(CUresult, cuDriverGetVersion, CUDA_VERSION, int *result)
ANSWER(CUresult, cuDeviceGetCount, 1, int *result)
ANSWER(CUresult, cuDeviceGet, 0, CUdevice *result, int ordinal)
ANSWER(CUresult, cuDeviceGetAttribute, attribute((int)which), int *result, CUdevice_attribute which, CUdevice device)
ANSWER(CUresult, cuDevicePrimaryCtxRetain, NEW, CUcontext *result, CUdevice device)
ANSWER(CUresult, cuCtxGetCurrent, NEW, CUcontext *result)
ANSWER(CUresult, cuModuleLoadData, NEW, CUmodule *result, const void *image)
ANSWER(CUresult, cuModuleGetFunction, NEW, CUfunction *result, CUmodule module, const char *name)
ANSWER(CUresult, cuModuleLoadDataEx, NEW, CUmodule *result, const void *image, unsigned options, CUjit_option *keys,
       void **values)
ANSWER(CUresult, cuModuleLoad, NEW, CUmodule *result, const char *path)
ANSWER(CUresult, cuFuncGetAttribute, which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, int *result,
       CUfunction_attribute which, CUfunction function)

CUresult cuGetExportTable(const void **table, const CUuuid *which) { return CUDA_ERROR_NOT_FOUND; } /* NVRTC goes on without */

CUresult cuPointerGetAttribute(void *result, CUpointer_attribute which, CUdeviceptr pointer) {
    *(CUdeviceptr *)result = pointer; /* Triton asks for the device's address of a tensor */
    return CUDA_SUCCESS;
}

/* cuBLAS and NCCL, whose headers are not needed: a handle is any address. */

ANSWER(int, cublasCreate_v2, NEW, void **result)
ANSWER(int, cublasLtCreate, NEW, void **result)
ANSWER(int, cublasLtMatmulAlgoGetHeuristic, 1, void *handle, void *product, void *a, void *b, void *c, void *d,
       void *preference, int asked, void *found, int *result)
ANSWER(int, cublasGetMathMode, 0, void *handle, int *result)
ANSWER(int, ncclGetVersion, 22907, int *result)
ANSWER(int, ncclCommInitRankConfig, NEW, void **result)
ANSWER(int, ncclCommSplit, NEW, void *communicator, int color, int key, void **result)
ANSWER(int, ncclCommGetAsyncError, 0, void *communicator, int *result)

/* Some ask for functions by name. */

static void *named(const char *name) { return dlsym(RTLD_DEFAULT, name); }
ANSWER(cudaError_t, cudaGetDriverEntryPointByVersion, (*found = cudaDriverEntryPointSuccess, named(name)), const char *name,
       void **result, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *found)
ANSWER(CUresult, cuGetProcAddress_v2, named(name), const char *name, void **result, int version, cuuint64_t flags,
       CUdriverProcAddressQueryResult *found)
