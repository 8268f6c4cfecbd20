"""Small modules that remember: averaged weights, running means. Their memory is buffers, so it saves itself."""
