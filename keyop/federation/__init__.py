"""Exchanging selected channels with other instances: hubs that listen, clients that dial."""
