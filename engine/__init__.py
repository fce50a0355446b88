import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for large tensors on a CPU; read when torch is imported
