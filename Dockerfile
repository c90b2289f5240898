# dgia_jax with its command `dgia`, for a CPU or for an NVIDIA GPU:
#
#   docker build --tag dgia_jax .
#   docker build --tag dgia_jax:gpu --build-arg EXTRAS=gpu .
#
# Runs, datasets and caches belong in the volume /dgia, a folder that the user owns (mkdir work):
#
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD/work:/dgia" dgia_jax train \
#       --config synth_pedes:small --workdir runs/small
#   docker run --rm --user "$(id -u):$(id -g)" --gpus all --shm-size 8g --volume "$PWD/work:/dgia" dgia_jax:gpu \
#       train --config cuhk_pedes --workdir runs/cuhk --config.dataset.source=/dgia/CUHK-PEDES
FROM python:3.11-slim

# Extras of the package, such as gpu (CUDA, which needs only the host's driver) or gpu,serve (and the web page).
ARG EXTRAS=

WORKDIR /opt/dgia_jax
COPY requirements.txt setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY dgia_jax dgia_jax
# The versions that the tests ran with, without the tools for tests.
RUN pip install --no-cache-dir --constraint requirements.txt .
RUN if [ -n "${EXTRAS}" ]; then pip install --no-cache-dir --constraint requirements.txt ".[${EXTRAS}]"; fi

RUN useradd --create-home --uid 1000 dgia && mkdir /dgia && chown dgia /dgia
USER 1000
WORKDIR /dgia
# Built datasets, downloaded weights and compiled programs stay in the volume.
ENV TFDS_DATA_DIR=/dgia/datasets \
    HF_HOME=/dgia/cache/huggingface \
    XDG_CACHE_HOME=/dgia/cache \
    HOME=/dgia
VOLUME /dgia
EXPOSE 7860
ENTRYPOINT ["dgia"]
CMD ["--help"]
