"""Answer predict requests: what any request needs, from its path to its rendered answer."""
