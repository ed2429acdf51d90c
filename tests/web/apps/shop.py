# shop.py
import os

import gevent
from flask import Flask, Response, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import keyop
from keyop import Messenger
from keyop.web import event_stream

messenger = Messenger(data_dir="keyop-data")  # does no I/O: it may stand here
app = Flask(__name__)


@app.post("/orders")
def order():
    order_id = messenger.publish(
        "orders",
        "com.example.Order",
        request.get_json(),
        message_id=request.headers.get("Idempotency-Key"),
        timeout=5,
    )
    return {"id": order_id}


@app.errorhandler(keyop.KeyopError)
def unavailable(error):
    refused = isinstance(error, (keyop.PayloadError, keyop.RecordTooLargeError))
    return {"error": str(error)}, 400 if refused else 503


@app.get("/bills")
def bills():
    events = event_stream(messenger, "bills", request.headers.get("Last-Event-ID"))
    return Response(events, content_type="text/event-stream")


def bill(message):
    gevent.sleep(message.payload.get("seconds", 0))  # somebody has to be asked
    bill = {"order": message.payload["id"], "by": os.getpid()}
    messenger.publish("bills", "com.example.Bill", bill)


def subscribe():  # in every worker, after the fork
    messenger.subscribe("orders", "billing", bill, start="earliest", standby=True)


page = keyop.web.app(messenger, token="a-secret-of-your-own")
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/keyop": page})
