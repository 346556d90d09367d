# What every stage runs in: requirements/gpu.txt, this package, and what they need of a system. Built from the checkout's root.
ARG BASE=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${BASE} AS system
# tini is process 1 of the pod. A C++ compiler and Python's headers: Triton, DeepSpeed and FlashInfer compile for the GPU
# they meet, with the CUDA compiler of the lock. ibverbs: NCCL finds InfiniBand through it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ ibverbs-providers python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/*
# SIGTERM reaches the stage alone, which then asks its own processes for a checkpoint; what Ray and torchrun leave is reaped.
ENTRYPOINT ["tini", "--", "python", "-m", "egt_pipeline"]

FROM system AS install
WORKDIR /src
# The lock is of Python 3.12.
RUN python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'
COPY requirements/build.txt requirements/gpu.txt requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements/build.txt \
    && python3 -m venv --without-pip /opt/egt \
    && /opt/build/bin/uv pip install --no-cache --python /opt/egt/bin/python --require-hashes --no-deps \
        --build-constraints requirements/build.txt --compile-bytecode -r requirements/gpu.txt
# Linkers look for the name without a version, which a wheel cannot hold.
RUN ln -s libcudart.so.13 /opt/egt/lib/python3.12/site-packages/nvidia/cu13/lib/libcudart.so
COPY LICENSE README.md pyproject.toml ./
COPY operator operator
COPY pipeline pipeline
# uv leaves a lock that anybody may write to.
RUN /opt/build/bin/uv pip install --no-cache --python /opt/egt/bin/python --no-deps \
        --build-constraints requirements/build.txt --compile-bytecode . \
    && rm -f /opt/egt/.lock

FROM system
COPY --from=install /opt/egt /opt/egt
# Any user may run it: what is written goes to the pod's volumes, and USER is the name of one whom no passwd file knows.
ENV CUDA_HOME=/opt/egt/lib/python3.12/site-packages/nvidia/cu13
ENV PATH=/opt/egt/bin:${CUDA_HOME}/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=egt
USER 65532:65532
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="egt-pipeline" \
      org.opencontainers.image.description="The stages of entropy-guided training, on CUDA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
