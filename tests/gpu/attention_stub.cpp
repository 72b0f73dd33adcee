/* Transformer Engine's fused attention without cuDNN, for tests/gpu/dry_run.py.

   It is asked twice: first for the sizes of what it keeps for the backward pass and of its workspace, then to compute. These
   functions give the sizes of what is kept, as the real ones do, and compute nothing. cuDNN's workspace is not known. */
#include <transformer_engine/fused_attn.h>

static void set_shape(NVTETensor tensor, NVTEDType type, const NVTEShape &shape) {
    NVTEBasicTensor values = {nvte_tensor_data(tensor), type, shape};
    nvte_set_tensor_param(&tensor, kNVTERowwiseData, &values);
}

static NVTEShape shape_of(std::initializer_list<size_t> sizes) { return nvte_make_shape(sizes.begin(), sizes.size()); }

void nvte_fused_attn_fwd(const NVTETensor Q, const NVTETensor K, const NVTETensor V, const NVTETensor, const NVTETensor,
                         NVTETensor, NVTETensor, NVTETensorPack *kept, const NVTETensor borders, const NVTETensor,
                         const NVTETensor, const NVTETensor, const NVTETensor, const NVTETensor, const NVTETensor,
                         size_t longest, size_t, bool, bool, bool, float, float, NVTE_QKV_Layout layout, NVTE_QKV_Format,
                         NVTE_QKV_Format, NVTE_Bias_Type, NVTE_Mask_Type, NVTE_Softmax_Type, int64_t, int64_t, bool,
                         NVTETensor workspace, cudaStream_t) {
    if (kept->size) return;
    NVTEShape query = nvte_tensor_shape(Q);
    size_t heads = query.data[query.ndim - 2], rows = nvte_tensor_shape(borders).data[0] - 1;
    bool packed = nvte_get_q_format(layout) == NVTE_THD;
    set_shape(kept->tensors[0], kNVTEFloat32,
              packed ? shape_of({query.data[0], heads, 1}) : shape_of({rows, heads, longest, 1})); /* sums of the softmax */
    set_shape(kept->tensors[1], kNVTEInt64, shape_of({2})); /* the random generator's state */
    kept->size = 2;
    set_shape(workspace, kNVTEByte, shape_of({1}));
}

void nvte_fused_attn_bwd(const NVTETensor, const NVTETensor, const NVTETensor, const NVTETensor, const NVTETensor,
                         const NVTETensor, NVTETensor, const NVTETensorPack *, NVTETensor, NVTETensor, NVTETensor, NVTETensor,
                         NVTETensor, const NVTETensor, const NVTETensor, const NVTETensor, const NVTETensor, size_t, size_t,
                         float, float, NVTE_QKV_Layout, NVTE_QKV_Format, NVTE_QKV_Format, NVTE_QKV_Layout, NVTE_QKV_Format,
                         NVTE_QKV_Format, NVTE_Bias_Type, NVTE_Mask_Type, NVTE_Softmax_Type, int64_t, int64_t, bool, bool,
                         bool, NVTETensor workspace, cudaStream_t) {
    set_shape(workspace, kNVTEByte, shape_of({1}));
}
