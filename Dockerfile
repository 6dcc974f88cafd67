# docker build -t clearstamp . && docker run --rm -v "$PWD/artifacts:/clearstamp/artifacts" clearstamp reproduce
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /clearstamp
COPY requirements.lock pyproject.toml README.md LICENSE Makefile ./
COPY clearstamp clearstamp
RUN make setup
COPY . .
ENTRYPOINT ["make"]
CMD ["test"]
