"""Vectors and scores of published versions for ranking services: in process, and by the Open Inference Protocol.

one version    reader.py (raw values -> vectors, statuses, scores), values.py (raw values, in Arrow or in the protocol's
               tensors -> tokens), search.py and indexes.py (nearest neighbours among a
               feature's values)
a request      protocol.py (tensors, requests, responses, the same for both protocols), service.py (request -> response)
a server       versions.py (which version each name means now; a swap loses no request), server.py, access.py,
               metrics.py, outcomes.py, held.py (what all requests together hold in memory)
HTTP           http.py, an ASGI application, of asgi.py, bodies.py and connections.py; client.py asks it, without torch
gRPC           grpc.py, messages.py
processes      settings.py (what a server is started with), tls.py, sockets.py, logs.py, supervisor.py, worker.py
"""
