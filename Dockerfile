# One file, two images:
#   docker build --target train -t embstore-train .
#   docker build --target serve -t embstore-serve .
# With a GPU: --build-arg FLAVOR=cuda --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 (which has Python 3.12)

ARG BASE=python:3.11-slim

FROM ${BASE} AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN command -v pip >/dev/null || (apt-get update && apt-get install -y --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/embstore
ENV PATH=/opt/embstore/bin:$PATH
WORKDIR /src
ARG FLAVOR=cpu
# CPU wheels of torch are on an index of their own; empty takes pip's default.
ARG TORCH_INDEX=""
RUN pip install ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY embstore embstore
COPY models models
COPY pipelines pipelines

# Serves versions: neither fbgemm, torchrec nor Ray. docs/serving has a compose file and a Kubernetes manifest.
FROM base AS serve
RUN pip install ".[serve]"
RUN useradd --create-home embstore
USER embstore
WORKDIR /data
ENTRYPOINT ["embstore"]
EXPOSE 8000 8001
CMD ["serve", "/data/store"]

FROM base AS train
ARG FLAVOR=cpu
RUN pip install ".[fbgemm-${FLAVOR},torchrec,ray,tensorboard]" && pip install --no-deps torchrec==1.8.0
COPY configs /opt/embstore/configs
RUN useradd --create-home embstore
USER embstore
WORKDIR /data
ENTRYPOINT ["embstore"]
CMD ["--help"]
