"""HTTP: predict requests, and what every request needs, from its path to its rendered answer."""
