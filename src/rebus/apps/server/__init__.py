"""The HTTP server: OpenAI's routes for systems that read and write text and images.

verb      `rebus serve`: the options, loading, running until SIGTERM
app       the application: routes, who may ask, what is measured
gate      what stands before every route: keys, origins, sizes, times
worker    the threads of a model: one encodes, one decodes (continuous batching), one draws
chat  responses  drawings  codes      the routes
schema  incoming  outgoing            requests and replies as JSON
fetch     pictures from the network, where that is allowed
replicas  the same application on Ray Serve
"""
