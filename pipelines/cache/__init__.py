"""Answer a request from an equal one: answers that are kept, and requests that are under way."""
