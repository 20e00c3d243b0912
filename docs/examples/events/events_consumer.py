"""Consumes events of Holdfast with Apache RocketMQ's own client for Python (PyPI: rocketmq-python-client 5.x).

    python events_consumer.py PROXY TOPIC GROUP [TAGS] [ACCESS_KEY SECRET_KEY]
    python events_consumer.py 127.0.0.1:8081 holdfast-objects thumbnails 'ObjectCreated:Put || ObjectCreated:Copy'

The client speaks gRPC to RocketMQ's proxy (ProxyStartup, port 8081), not to brokers. A message that is not acknowledged within
its invisible duration comes again, so the work is done before the acknowledgement, and is safe to do twice.
"""

import json
import sys
import time

from rocketmq import ClientConfiguration, Credentials, FilterExpression, SimpleConsumer

INVISIBLE_SECONDS = 30


def main(proxy, topic, group, tags="*", access_key=None, secret_key=None):
    credentials = Credentials(access_key, secret_key) if access_key else Credentials()
    consumer = SimpleConsumer(ClientConfiguration(proxy, credentials), group, {topic: FilterExpression(tags)})
    consumer.startup()
    # The highest sequencer of each object: what is not above it is a repetition. A real consumer keeps it with its results.
    newest = {}
    try:
        while True:
            try:
                messages = consumer.receive(16, INVISIBLE_SECONDS) or []
            except Exception as error:  # The proxy may not know this client yet, or be gone for a while.
                print(error, file=sys.stderr)
                time.sleep(1)
                continue
            for message in messages:
                record = json.loads(message.body)["Records"][0]
                place = (record["s3"]["bucket"]["name"], record["s3"]["object"]["key"])
                sequencer = record["s3"]["object"]["sequencer"]
                if sequencer > newest.get(place, ""):
                    newest[place] = sequencer
                    print(record["holdfast"]["eventId"], record["eventName"], *place, flush=True)
                consumer.ack(message)
    finally:
        consumer.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
