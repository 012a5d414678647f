# One layer of files on a base; `./inv image.build` uses it twice: Python packages on a base with Python, our code on
# those. It chooses the base and makes files.tar (deterministic, byte code inside), so nothing has to RUN here.
# The settings stand first: the engine remembers those steps, and only the last one depends on the code.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ENV PATH=/opt/meshbed/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/meshbed/code:/opt/meshbed/packages \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LANG=C.UTF-8
USER 65534:65534
ENTRYPOINT []
CMD ["python"]
ADD files.tar /
