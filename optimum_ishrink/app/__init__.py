"""The phone page: a site that chats with models and times them in a browser, its server, and what devices report."""
