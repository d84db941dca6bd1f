# The store server, without torch. From the root of the checkout: docker build -f deploy/docker/store.Dockerfile -t larder-store:0.1.0 .
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS build
WORKDIR /source
COPY deploy/docker/store.lock /locks/
RUN python -m venv /opt/larder && /opt/larder/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r /locks/store.lock
COPY pyproject.toml README.md LICENSE ./
COPY kvstore kvstore
COPY client client
COPY worker worker
COPY kernels kernels
COPY proto proto
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . && /opt/larder/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/larder/bin/pip uninstall --yes pip setuptools

FROM ${BASE}
RUN groupadd --gid 10001 larder && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp larder \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/larder
COPY --from=build /opt/larder /opt/larder
ENV PATH=/opt/larder/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 XDG_STATE_HOME=/var/lib
USER 10001:10001
EXPOSE 7420 7422
ENTRYPOINT ["larder"]
CMD ["store"]
