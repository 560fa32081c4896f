"""stub"""

from fastapi import FastAPI


def console_application(session, operators):
    return FastAPI(openapi_url=None)
