// Browsers start no worker from a page opened from disk. There, and there only, the worker of the search runs in a
// hidden frame instead: the same two-way messages, on one thread.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.title = "search"
      this.frame.srcdoc = "<!doctype html><title>search</title>"
      this.frame.addEventListener("load", () => this.start(url), { once: true })
      document.body.append(this.frame)
    }

    start(url) {
      const inside = this.frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inside.document.createElement("script")
      script.src = new URL(url, location.href).href
      script.addEventListener("load", () => {
        this.ready = true
        this.waiting.splice(0).forEach(data => this.hand(data))
      })
      inside.document.body.append(script)
    }

    postMessage(data) {
      this.ready ? this.hand(data) : this.waiting.push(data)
    }

    hand(data) {
      const inside = this.frame.contentWindow
      inside.dispatchEvent(new inside.MessageEvent("message", { data }))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
