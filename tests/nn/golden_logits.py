"""Makes tests/nn/golden/*.f32: logits of tiny random models as llama.cpp computes them.

    SHU_GOLDEN_MODELS=/tmp/models test_decoder      # writes the models and ends
    pip install llama-cpp-python==0.3.36            # or LLAMA_CPP_LIB_PATH=folder with libllama.so
    python3 tests/nn/golden_logits.py /tmp/models tests/nn/golden

Every file holds the logits of the last KEEP of ROWS positions, [KEEP, vocabulary] f32 little-endian, computed
with an F32 KV cache and without flash attention, so that the F32 weights are the only numbers that matter.
Made with llama-cpp-python 0.3.36 on x86-64. Row i holds token (i * 37 + 11) % vocabulary.
"""

import ctypes
import pathlib
import sys

import llama_cpp

ROWS, KEEP = 24, 6


def logits_of(path):
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"{path}: llama.cpp does not load it")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 64, 1, 1
    params.type_k = params.type_v = 0  # GGML_TYPE_F32
    params.flash_attn_type = 0  # disabled
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(ROWS, 0, 1)
    batch.n_tokens = ROWS
    for row in range(ROWS):
        batch.token[row], batch.pos[row], batch.n_seq_id[row] = (row * 37 + 11) % vocab, row, 1
        batch.seq_id[row][0], batch.logits[row] = 0, 1
    if llama_cpp.llama_decode(context, batch):
        sys.exit(f"{path}: llama.cpp does not run it")
    rows = [llama_cpp.llama_get_logits_ith(context, row) for row in range(ROWS - KEEP, ROWS)]
    data = b"".join(ctypes.string_at(row, 4 * vocab) for row in rows)
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return data


def main():
    models, out = map(pathlib.Path, sys.argv[1:])
    llama_cpp.llama_backend_init()
    for path in sorted(models.glob("*.gguf")):
        data = logits_of(path)
        (out / f"{path.stem}.f32").write_bytes(data)
        print(path.stem, len(data), "bytes")


main()
