"""Clients in processes of their own, with nothing but the standard library: `others.py health URL` asks how the server
is until its standard input ends, `others.py send URL PATH FILE N` sends a body N times at once. JSON comes out."""
import http.client, json, sys, threading, time
from pathlib import Path
from urllib.parse import urlsplit


def connect(url): return http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)


def health(url):
    "Seconds that each answer took, over one connection."
    times, over = [], threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    connection = connect(url)
    while not over.is_set():
        start = time.perf_counter()
        connection.request('GET', '/health')
        connection.getresponse().read()
        times.append(time.perf_counter() - start)
        time.sleep(.02)
    return times


def send(url, path, file, n):
    "Statuses of the same body, sent `n` times at once; a server may answer and hang up before it has read all."
    body, statuses = Path(file).read_bytes(), []
    def one():
        connection = connect(url)
        try: connection.request('POST', path, body, {'Content-Type':'application/json'})
        except (BrokenPipeError, ConnectionResetError): pass
        statuses.append(connection.getresponse().status)
    threads = [threading.Thread(target=one) for _ in range(int(n))]
    for t in threads: t.start()
    for t in threads: t.join()
    return statuses


if __name__ == '__main__': print(json.dumps(dict(health=health, send=send)[sys.argv[1]](*sys.argv[2:])))
