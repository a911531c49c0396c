"""Write the OpenAPI document and serve its page."""
