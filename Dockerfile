# syntax=docker/dockerfile:1
# On the CPU:
#     docker build --tag encnet .
#     docker run --rm --volume "$PWD:/work" --user "$(id -u):$(id -g)" encnet --help
# On NVIDIA GPUs (the host needs the driver and the NVIDIA Container Toolkit):
#     docker build --tag encnet:cuda --build-arg EXTRA=cuda .
#     docker run --rm --gpus all ... encnet:cuda ...
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir "build>=1.2,<2" && python -m build --wheel

FROM python:${PYTHON}-slim
# Another extra of pyproject.toml beside `train` and `weights`: cuda, export.
ARG EXTRA=
RUN --mount=type=bind,from=build,source=/src/dist,target=/dist \
    pip install --no-cache-dir "$(echo /dist/*.whl)[train,weights${EXTRA:+,$EXTRA}]"
# Any user may write caches to the home folder, and results to the working folder.
RUN useradd --create-home --uid 1000 encnet \
    && install --directory --owner=encnet --mode=1777 /work \
    && chmod 1777 /home/encnet
ENV HOME=/home/encnet \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1
USER 1000
WORKDIR /work
ENTRYPOINT ["encnet"]
CMD ["--help"]
