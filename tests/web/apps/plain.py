# plain.py
import json
import os

from keyop import Messenger

messenger = Messenger(data_dir="keyop-data")


def application(environ, start_response):
    order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    messenger.publish("orders", "com.example.Order", order, message_id=f"order-{order['id']}")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"thank you\n"]


def bill(message):
    bill = {"order": message.payload["id"], "by": os.getpid()}
    messenger.publish("bills", "com.example.Bill", bill)


messenger.subscribe("orders", "billing", bill, start="earliest", standby=True)
