# The worker, for CUDA and linux/amd64. torch's wheels bring CUDA's libraries; the driver comes from the container runtime.
# From the root of the checkout: docker build -f deploy/docker/worker.Dockerfile -t larder-worker:0.1.0 .
# With Ray, for `larder worker --ray` and the chart's worker.ray: add --build-arg LOCK=worker-ray
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
ARG LOCK=worker
WORKDIR /source
COPY deploy/docker/worker.lock deploy/docker/worker-ray.lock /locks/
RUN python -m venv /opt/larder && /opt/larder/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r /locks/${LOCK}.lock
COPY pyproject.toml README.md LICENSE ./
COPY kvstore kvstore
COPY client client
COPY worker worker
COPY kernels kernels
COPY proto proto
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . && /opt/larder/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/larder/bin/pip uninstall --yes pip

FROM ${BASE}
# Triton compiles a launcher for each kernel on first use.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 larder && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp larder \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/larder
COPY --from=build /opt/larder /opt/larder
ENV PATH=/opt/larder/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 XDG_STATE_HOME=/var/lib HOME=/tmp \
    LARDER_ADDRESS=127.0.0.1:7421 HF_HUB_OFFLINE=1 TRITON_CACHE_DIR=/tmp/triton \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 7421
ENTRYPOINT ["larder"]
CMD ["worker"]
