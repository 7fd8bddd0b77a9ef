# AlignGPT with CUDA, flash attention and DeepSpeed.
#   docker build -t aligngpt .
#   docker run --gpus all -v "$PWD/runs:/home/aligngpt/runs" aligngpt aligngpt zoo
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv "$VIRTUAL_ENV"

WORKDIR /src
COPY . .
# the releases are ranges in settings.ini
# hadolint ignore=DL3013
RUN pip install '.[serve,lora,quantize,deepspeed]'
# builds against the torch that is installed; MAX_JOBS keeps its memory within bounds
# hadolint ignore=DL3013
RUN pip install ninja packaging setuptools wheel \
    && MAX_JOBS=4 pip install --no-build-isolation '.[flash]'

RUN useradd --create-home --uid 1001 aligngpt
USER 1001
WORKDIR /home/aligngpt
EXPOSE 8000
CMD ["aligngpt", "--help"]
