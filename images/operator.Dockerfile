# The operator and the command line: requirements/operator.txt, this package, and nothing else. Built from the checkout's root.
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm

FROM ${BASE} AS install
WORKDIR /src
COPY requirements/build.txt requirements/operator.txt requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements/build.txt \
    && python3 -m venv --without-pip /opt/egt \
    && /opt/build/bin/uv pip install --no-cache --python /opt/egt/bin/python --require-hashes --no-deps \
        --compile-bytecode -r requirements/operator.txt
COPY LICENSE README.md pyproject.toml ./
COPY operator operator
COPY pipeline pipeline
# uv leaves a lock that anybody may write to.
RUN /opt/build/bin/uv pip install --no-cache --python /opt/egt/bin/python --no-deps \
        --build-constraints requirements/build.txt --compile-bytecode . \
    && rm -f /opt/egt/.lock

FROM ${BASE}
COPY --from=install /opt/egt /opt/egt
# Any user may run it: nothing of it is written to, and USER is the name of one whom no passwd file knows.
ENV PATH=/opt/egt/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=egt
USER 65532:65532
# Process 1 is the operator itself: it hears SIGTERM and starts no processes, so there is nobody to reap.
ENTRYPOINT ["python", "-m", "egt_operator"]
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="egt-operator" \
      org.opencontainers.image.description="Turns EGTRuns into sequential PyTorchJobs; also the egt command line" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
