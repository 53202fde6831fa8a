# One image for every pod of the chart: `--target gpu` (the default) or `--target cpu`. Python packages are those of
# requirements.lock, checked by hash. Replace the base by its digest where your registry mirrors it.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY .ci/uv.lock requirements.lock ./
RUN python -m venv /opt/sparktier \
 && /opt/sparktier/bin/pip install --no-cache-dir --require-hashes -r uv.lock \
 && /opt/sparktier/bin/uv pip install --no-cache --require-hashes --compile-bytecode \
      --python /opt/sparktier/bin/python -r requirements.lock
COPY . .
RUN /opt/sparktier/bin/uv pip install --no-cache --no-deps --no-build-isolation --compile-bytecode \
      --python /opt/sparktier/bin/python .

# bash runs Ray beside the engine, and the Ray operator's probes of worker pods call wget.
FROM ${BASE} AS common
# Pinned versions would stop building when Debian drops them.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends bash libgomp1 libnuma1 wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 sparktier \
 && useradd --uid 10001 --gid 10001 --home-dir /cache --shell /usr/sbin/nologin sparktier \
 && mkdir -p /cache /models \
 && chown 10001:10001 /cache /models
COPY --from=build /opt/sparktier /opt/sparktier
ENV PATH=/opt/sparktier/bin:$PATH \
    HOME=/cache \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /cache
CMD ["sparktier", "--help"]

FROM common AS cpu

# Kernels that are compiled at start need a C++ compiler, and nvcc, which comes with the packages. libibverbs: RDMA.
FROM common AS gpu
USER 0
# Pinned versions would stop building when Debian drops them.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ ibverbs-providers libibverbs1 librdmacm1 ninja-build \
 && rm -rf /var/lib/apt/lists/*
ENV CUDA_HOME=/opt/sparktier/lib/python3.11/site-packages/nvidia/cu13 \
    NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
